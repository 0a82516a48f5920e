from __future__ import annotations

import dataclasses

import pytest
import torch

from frostline.errors import ConfigError
from frostline.systems.graf import average_of, discriminator_loss, generator_loss, update_average_
from frostline.systems.graf.config import GrafSystemConfig
from graf_parts import SMALL, draw_of, photographs, players, small

RUN = ("objective", "optimizers.", "metrics.", "samples.")
"""What a run reads, not a step: see `test_every_key_is_read_in_a_run`."""


class Recorded:
    """A configuration that notes which of its keys are read."""

    def __init__(self, config, prefix="", read=None):
        self._config, self._prefix, self.read = config, prefix, set() if read is None else read

    def __getattr__(self, name):
        value, path = getattr(self._config, name), f"{self._prefix}{name}"
        if dataclasses.is_dataclass(value):
            return Recorded(value, f"{path}.", self.read)
        self.read.add(path)
        return value


def keys(config, prefix=""):
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from keys(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def one_step(config):
    generator, discriminator = players(config)
    draw = draw_of(generator)
    generator_loss(generator, discriminator, draw, step=1).total.backward()
    discriminator_loss(generator, discriminator, draw, photographs(generator, draw), step=0).total.backward()
    plain = torch.nn.Linear(1, 1)
    update_average_(average_of(plain), plain, config.average, step=1)


def test_every_key_is_read_in_a_step():
    whole = Recorded(small(
        rendering={"num_importance": 4, "coarse": "own"},
        discriminator={"label_head": "mce"},
        ccsr={"loss": "consistency"},
    ))  # fmt: skip
    patch = Recorded(small(rays={"sampler": "patch", "num_rays": 16}, ccsr={"enabled": False}))
    one_step(whole)
    one_step(patch)
    read = whole.read | patch.read
    assert read == {key for key in keys(GrafSystemConfig()) if not key.startswith(RUN)}


def test_the_defaults_are_grafs_sizes():
    config = GrafSystemConfig()
    assert (config.rays.num_rays, config.camera.image_size, config.rendering.num_samples) == (1024, 32, 64)
    assert (config.field.depth, config.field.width, config.field.latent_size) == (8, 256, 256)


def test_a_coarse_picture_that_nobody_makes():
    generator, _ = players(SMALL)
    with pytest.raises(ConfigError, match="no coarse field whose picture could be read"):
        generator(draw_of(generator), read_coarse=True)
