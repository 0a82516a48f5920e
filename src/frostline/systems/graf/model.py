"""All that a run trains and keeps: the two players and the averaged generator."""

from __future__ import annotations

from typing import cast

from torch import nn

from frostline.systems.graf.config import GrafSystemConfig
from frostline.systems.graf.discriminator import Discriminator
from frostline.systems.graf.ema import average_of, update_average_
from frostline.systems.graf.generator import Generator
from frostline.systems.graf.objective import build_discriminator
from frostline.training import Precision


class GrafModel(nn.Module):
    """Generator, discriminator where there are two players, and the generator's average over the training.

    Args:
        config: Of the system.
        precision: Autocast type of the field's MLP.

    Attributes:
        average: Its values are buffers: no optimizer finds them, and a checkpoint keeps them.
    """

    def __init__(self, config: GrafSystemConfig, precision: Precision = "32-true") -> None:
        super().__init__()
        self._config = config
        self.generator = Generator(config, precision)
        two = config.objective == "adversarial"
        self.discriminator: Discriminator | None = build_discriminator(self.generator) if two else None
        self.average = cast(Generator, average_of(self.generator))

    def set_chunk_rays_(self, chunk_rays: int) -> None:
        """Let so many rays go through the field at once, 0 for all; what is not recomputed yet will be."""
        for generator in (self.generator, self.average):
            generator.chunk_rays = chunk_rays
            if generator.recompute == "none":
                generator.recompute = "deferred"

    def update_average_(self, step: int) -> None:
        """Move the average behind the generator's update number `step` + 1."""
        update_average_(self.average, self.generator, self._config.average, step=step)
