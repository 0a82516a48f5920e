"""Where the camera stands, and which ray goes through which point of its image.

The axes: z is up; at azimuth 0 the camera stands on the positive x axis, and moves towards y as azimuth grows;
elevation is the angle above the horizon. It looks at the origin, its image upright.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from frostline.errors import ConfigError, ShapeError
from frostline.systems.graf.config import CameraConfig


@dataclass(frozen=True)
class Poses:
    """One camera an image.

    Attributes:
        azimuth: In radians, (B,).
        elevation: In radians, (B,).
    """

    azimuth: Tensor
    elevation: Tensor

    @staticmethod
    def from_degrees(azimuth: Tensor, elevation: Tensor) -> Poses:
        """From angles in degrees, (B,) each."""
        return Poses(torch.deg2rad(azimuth), torch.deg2rad(elevation))

    def __len__(self) -> int:
        return len(self.azimuth)

    def sector(self, num_sectors: int) -> Tensor:
        """Which of equal sectors the azimuth falls into, int64 (B,); sector 0 begins at azimuth 0."""
        turns = torch.remainder(self.azimuth / (2 * math.pi), 1.0)
        return (turns * num_sectors).long().clamp(max=num_sectors - 1)

    def features(self) -> Tensor:
        """Sines and cosines of both angles, (B, 4)."""
        angles = torch.stack([self.azimuth, self.elevation], 1)
        return torch.cat([angles.sin(), angles.cos()], 1)


class Rays(NamedTuple):
    """Half-lines of light, backwards.

    Attributes:
        origins: (B, N, 3).
        directions: Of length 1, (B, N, 3).
    """

    origins: Tensor
    directions: Tensor


class Camera:
    """A pinhole camera on a sphere.

    Args:
        config: Field of view, radius and the part of a ray that is sampled.

    Raises:
        ConfigError: An angle or distances that make no image.
    """

    def __init__(self, config: CameraConfig) -> None:
        if not 0 < config.fov_degrees < 180:
            raise ConfigError(
                f"a field of view of {config.fov_degrees:g} degrees",
                where="--system.camera.fov-degrees",
                do="give more than 0 and less than 180",
            )
        if not config.near < config.far:
            raise ConfigError(
                f"near is {config.near:g}, far is {config.far:g}",
                where="--system.camera.near, --system.camera.far",
                do="let near be smaller",
            )
        self.image_size = config.image_size
        self.near, self.far, self.radius = config.near, config.far, config.radius
        self._half_width = math.tan(math.radians(config.fov_degrees) / 2)

    def rays(self, poses: Poses, points: Tensor) -> Rays:
        """Rays through points of the image, row by row.

        Args:
            poses: Of B cameras.
            points: Of each image, (B, H, W, 2), as `torch.nn.functional.grid_sample` has them: x to the right and y
                down, both from -1 to 1.

        Returns:
            H x W rays an image.

        Raises:
            ShapeError: Poses and points are not of the same number of images.
        """
        if points.dim() != 4 or points.shape[::3] != (len(poses), 2):
            raise ShapeError("the points", expected=(len(poses), "H", "W", 2), actual=tuple(points.shape))
        forward, right, up = self._axes(poses)
        x, y = points.flatten(1, 2).split(1, -1)
        directions = forward + self._half_width * (x * right - y * up)
        directions = directions / directions.norm(dim=-1, keepdim=True)
        return Rays((-self.radius * forward).expand_as(directions), directions)

    def _axes(self, poses: Poses) -> tuple[Tensor, Tensor, Tensor]:
        """Forward, right and up, (B, 1, 3) each; defined at the poles too."""
        sin_a, cos_a = poses.azimuth.sin(), poses.azimuth.cos()
        sin_e, cos_e = poses.elevation.sin(), poses.elevation.cos()
        forward = -torch.stack([cos_e * cos_a, cos_e * sin_a, sin_e], -1)
        right = torch.stack([-sin_a, cos_a, torch.zeros_like(sin_a)], -1)
        up = torch.stack([-cos_a * sin_e, -sin_a * sin_e, cos_e], -1)
        return forward[:, None], right[:, None], up[:, None]
