from __future__ import annotations

import math

import pytest
import torch

from frostline.errors import ConfigError, ShapeError
from frostline.systems.graf import Camera, Patch, Poses
from frostline.systems.graf.config import CameraConfig, RaysConfig
from frostline.systems.graf.rays import RaySampler, square_side

ROOT2 = math.sqrt(2)


def rays(azimuth, elevation, points, **camera):
    poses = Poses.from_degrees(torch.tensor([azimuth]).double(), torch.tensor([elevation]).double())
    points = torch.tensor(points, dtype=torch.float64).view(1, 1, -1, 2)
    found = Camera(CameraConfig(**camera)).rays(poses, points)
    return found.origins[0], found.directions[0]


@pytest.mark.parametrize(
    ("azimuth", "elevation", "origin", "ahead", "right", "down"),
    [
        (0.0, 0.0, (2, 0, 0), (-1, 0, 0), (0, 1, 0), (0, 0, -1)),
        (90.0, 0.0, (0, 2, 0), (0, -1, 0), (-1, 0, 0), (0, 0, -1)),
        (180.0, 0.0, (-2, 0, 0), (1, 0, 0), (0, -1, 0), (0, 0, -1)),
        (0.0, 45.0, (ROOT2, 0, ROOT2), (-1 / ROOT2, 0, -1 / ROOT2), (0, 1, 0), (1 / ROOT2, 0, -1 / ROOT2)),
        (0.0, 90.0, (0, 0, 2), (0, 0, -1), (0, 1, 0), (1, 0, 0)),
    ],
)
def test_rays_by_hand(azimuth, elevation, origin, ahead, right, down):
    """At 90 degrees of view the border of the image is as far to the side as ahead."""
    origins, directions = rays(azimuth, elevation, [[0, 0], [1, 0], [0, 1], [-1, -1]], radius=2.0, fov_degrees=90.0)
    ahead, right, down = (torch.tensor(axis, dtype=torch.float64) for axis in (ahead, right, down))
    expected = torch.stack([ahead, ahead + right, ahead + down, ahead - right - down])
    expected = expected / expected.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(origins, torch.tensor(origin, dtype=torch.float64).expand(4, 3), rtol=0, atol=1e-12)
    torch.testing.assert_close(directions, expected, rtol=0, atol=1e-12)


def test_the_field_of_view_is_the_angle_between_opposite_borders():
    _, directions = rays(33.0, 12.0, [[-1, 0], [1, 0], [0, -1], [0, 1]], fov_degrees=20.0)
    for pair in (directions[:2], directions[2:]):
        assert math.degrees(math.acos(pair[0] @ pair[1])) == pytest.approx(20.0)


def test_sectors_of_azimuth():
    azimuth = torch.tensor([0.0, 44.9, 45.0, 359.9, 360.0, -1.0, 719.9, -1e-6])
    sectors = Poses.from_degrees(azimuth, torch.zeros(8)).sector(8)
    assert sectors.tolist() == [0, 0, 1, 7, 0, 7, 7, 7]


def test_pose_features_go_round_smoothly():
    poses = Poses.from_degrees(torch.tensor([0.0, 360.0]), torch.tensor([10.0, 10.0]))
    features = poses.features()
    assert features.shape == (2, 4)
    torch.testing.assert_close(features[0], features[1], rtol=0, atol=1e-6)


def test_the_whole_image_is_every_pixel():
    patch = RaySampler(RaysConfig(), 5).draw(2)
    images = torch.rand(2, 3, 5, 5)
    torch.testing.assert_close(patch.crop(images), images)
    assert patch.points()[0, 0, 0].tolist() == pytest.approx([-0.8, -0.8])
    assert patch.points()[0, 0, 4].tolist() == pytest.approx([0.8, -0.8])


def test_a_patch_is_the_same_square_of_image_and_rays():
    """An image that shows its own coordinates shows a patch's points."""
    side = 64
    across = Patch.whole(side, 1).points().permute(0, 3, 1, 2)
    sampler = RaySampler(RaysConfig(sampler="patch", num_rays=16, scale_anneal_steps=0), side)
    patch = sampler.draw(6, generator=torch.Generator().manual_seed(0))
    seen = patch.crop(across.expand(6, 2, side, side)).permute(0, 2, 3, 1)
    torch.testing.assert_close(seen, patch.points(), rtol=0, atol=1e-5)
    assert patch.points().abs().max() < 1 and patch.geometry().shape == (6, 3)
    assert patch.scale.min() >= 0.25 and patch.scale.max() <= 1 and len(set(patch.scale.tolist())) == 6


def test_patches_shrink():
    sampler = RaySampler(RaysConfig(sampler="patch", min_scale=0.2, scale_anneal_steps=100), 64)
    assert [sampler.smallest(step) for step in (0, 50, 100, 1000)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    assert (sampler.draw(4, step=0).scale == 1).all()


@pytest.mark.parametrize(("num_rays", "nearest"), [(1000, "961 (31 x 31) or 1024 (32 x 32)"), (2, "1 (1 x 1) or 4 (2")])
def test_a_number_of_rays_that_is_no_square_is_answered_with_the_nearest_two(num_rays, nearest):
    with pytest.raises(ConfigError) as error:
        RaySampler(RaysConfig(sampler="patch", num_rays=num_rays), 64)
    assert f"{num_rays} rays is no square" in error.value.what
    assert error.value.where == "--system.rays.num-rays" and nearest in error.value.do
    assert square_side(1024) == 32


def test_values_that_make_no_camera():
    with pytest.raises(ConfigError, match=r"field of view of 180 degrees(.|\n)*fov-degrees"):
        Camera(CameraConfig(fov_degrees=180.0))
    with pytest.raises(ConfigError, match=r"near is 3, far is 3"):
        Camera(CameraConfig(near=3.0, far=3.0))
    with pytest.raises(ConfigError, match=r"smallest patch is 1\.5"):
        RaySampler(RaysConfig(min_scale=1.5), 8)
    with pytest.raises(ShapeError, match=r"the points must have shape \(2, H, W, 2\)"):
        Camera(CameraConfig()).rays(Poses(torch.zeros(2), torch.zeros(2)), torch.zeros(1, 4, 4, 2))
