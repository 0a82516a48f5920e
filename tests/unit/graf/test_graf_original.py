"""Configurations of the published code."""

import dataclasses

import pytest

from frostline.config import load_config
from frostline.errors import ConfigError
from frostline.systems.graf.config import GrafConfig
from frostline.systems.graf.original import KEYS, convert

PUBLISHED = """
expname: car
data:
  datadir: ./cars
  imsize: 64
  white_bkgd: True
  fov: 20
  near: 1.5
  far: 4.5
  radius: 2.5
  v: "0.5, 0.4, 0.3, 0.2"
ray_sampler: {N_samples: 1024, scale_anneal: 0.0025}
nerf: {N_samples: 64, N_importance: 16, raw_noise_std: 1., decrease_noise: True, netdepth: 8}
ccsr: {enabled: "True,", num_latent_codes: "8,"}
training:
  batch_size: 8
  nworkers: 8
  lr_g: 0.0006
  lr_d: 0.0001
  optimizer: rmsprop
  reg_param: 80.
  lr_anneal: 0.5
  lr_anneal_every: 80000,120000,150000
  chunk: 32768
  save_every: 1000
"""


def converted(text, tmp_path):
    (tmp_path / "original.yaml").write_text(text)
    source, notes = convert(tmp_path / "original.yaml")
    return load_config(GrafConfig, source), "\n".join(notes)


def test_a_published_configuration_key_by_key(tmp_path):
    config, notes = converted(PUBLISHED, tmp_path)
    data, system, training = config.data, config.system, config.training
    assert (data.kind, data.path, data.num_workers) == ("folders", "./cars", 4)
    assert data.prefix_elevations_degrees == (0.0, 11.54, 23.58, 36.87)
    assert (system.camera.image_size, system.ccsr.scale, system.rays.sampler) == (32, 2, "whole")
    assert (system.camera.fov_degrees, system.camera.near, system.camera.far) == (20, 1.5, 4.5)
    assert (system.rendering.num_importance, system.rendering.coarse) == (16, "own")
    assert (system.rendering.background, system.rendering.density_noise_steps) == ("white", 5000)
    assert (system.ccsr.enabled, system.ccsr.num_views) == (True, 8)
    assert system.discriminator.r1_weight == pytest.approx(2 * 80 / 1024)
    assert system.rays.scale_anneal_steps == 184839  # exp(-3 x 0.0025 x 184.839) = 1 / 4
    assert (system.optimizers.kind, system.optimizers.milestones) == ("rmsprop", (80000, 120000, 150000))
    assert (training.batch_size, training.learning_rate) == (8, 0.0006)
    for said in ("training.chunk is left out: chunks without recompute save nothing", "was divided by the number of",
                 "nothing trained it", "expname is left out", "was in seconds", "seldom load faster"):  # fmt: skip
        assert said in notes


def test_without_super_resolution_rays_are_a_patch(tmp_path):
    config, notes = converted("data: {imsize: 128}\nray_sampler: {N_samples: 256, min_scale: 0.5}\nodd: 1", tmp_path)
    system = config.system
    assert (system.camera.image_size, system.rays.sampler, system.rays.num_rays) == (128, "patch", 256)
    assert system.rays.min_scale == 0.5 and not system.ccsr.enabled
    assert "odd is left out: there is nothing like it" in notes


def test_keys_lead_to_keys_that_are_there():
    for place in KEYS.values():
        part = GrafConfig()
        for name in place.split("."):
            part = getattr(part, name)
        assert not dataclasses.is_dataclass(part)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("model.pt", "", "a checkpoint of the published code cannot be mapped: its field has the latent code beside"),
        ("a.yaml", "- 1", "is no mapping"),
        ("a.yaml", "a: [", "cannot read the published configuration"),
        (
            "a.yaml",
            "ray_sampler: {N_samples: 1000}",
            r"a patch of 1000 rays is no square[\s\S]*961 \(31 x 31\) or 1024",
        ),
        ("a.yaml", "data: {v: low}", "a value cannot be converted: data.v is 'low'"),
        ("a.yaml", "training: {nworkers: many}", "a value cannot be converted: training.nworkers is 'many'"),
    ],
)
def test_what_cannot_be_converted(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=said):
        convert(tmp_path / name)
