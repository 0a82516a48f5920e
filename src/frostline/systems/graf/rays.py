"""Which points of the image a step renders: all of them, or a patch at a random place and scale."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from frostline.errors import ConfigError
from frostline.systems.graf.config import RaysConfig


@dataclass(frozen=True)
class Patch:
    """A square of each image.

    Attributes:
        size: Points across and down.
        scale: Its side over the image's, (B,).
        centre: Its place, (B, 2), x to the right and y down, both from -1 to 1.
    """

    size: int
    scale: Tensor
    centre: Tensor

    @staticmethod
    def whole(size: int, batch_size: int, device: torch.device | str = "cpu") -> Patch:
        """All of each image."""
        return Patch(size, torch.ones(batch_size, device=device), torch.zeros(batch_size, 2, device=device))

    def points(self) -> Tensor:
        """The middles of its pixels, (B, size, size, 2), as `torch.nn.functional.grid_sample` has them."""
        middles = (2 * torch.arange(self.size, device=self.scale.device, dtype=self.scale.dtype) + 1) / self.size - 1
        down, across = torch.meshgrid(middles, middles, indexing="ij")
        return torch.stack([across, down], -1) * self.scale[:, None, None, None] + self.centre[:, None, None]

    def geometry(self) -> Tensor:
        """Scale and place, (B, 3)."""
        return torch.cat([self.scale[:, None], self.centre], 1)

    def crop(self, images: Tensor) -> Tensor:
        """The same square of given images: (B, C, H, W) to (B, C, size, size), interpolated between pixels."""
        points = self.points().to(images.dtype)
        return F.grid_sample(images, points, mode="bilinear", padding_mode="border", align_corners=False)


class RaySampler:
    """Draws the points of a step.

    Args:
        config: Which.
        image_size: Of the rendered image.

    Raises:
        ConfigError: A number of rays that is no square's, or a scale above 1.
    """

    def __init__(self, config: RaysConfig, image_size: int) -> None:
        if config.min_scale > 1:
            raise ConfigError(
                f"the smallest patch is {config.min_scale:g} of the image",
                where="--system.rays.min-scale",
                do="give at most 1",
            )
        self._config = config
        self.size = image_size if config.sampler == "whole" else square_side(config.num_rays)

    def smallest(self, step: int) -> float:
        """The smallest scale that a step may draw."""
        steps, least = self._config.scale_anneal_steps, self._config.min_scale
        return least if steps == 0 else max(least, 1 - (1 - least) * step / steps)

    def draw(
        self,
        batch_size: int,
        *,
        step: int = 0,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> Patch:
        """Points of some images.

        Args:
            batch_size: Images.
            step: Steps made so far: patches shrink.
            generator: Of the random place and scale, on the CPU; torch's own if left out.
            device: Where the points are needed.
        """
        return self.place(torch.rand(batch_size, 3, generator=generator).to(device), step=step)

    def place(self, numbers: Tensor, *, step: int = 0) -> Patch:
        """Points of some images from three numbers between 0 and 1 for each.

        Args:
            numbers: Of scale and place, (B, 3).
            step: Steps made so far.
        """
        if self._config.sampler == "whole":
            return Patch.whole(self.size, len(numbers), numbers.device)
        least = self.smallest(step)
        scale = least + (1 - least) * numbers[:, 0]
        return Patch(self.size, scale, (2 * numbers[:, 1:] - 1) * (1 - scale[:, None]))


def square_side(num_rays: int) -> int:
    """The side of a square of so many rays.

    Raises:
        ConfigError: There is none; the text names the two nearest.
    """
    side = math.isqrt(num_rays)
    if side * side != num_rays:
        raise ConfigError(
            f"a patch of {num_rays} rays is no square",
            where="--system.rays.num-rays",
            do=f"take {side**2} ({side} x {side}) or {(side + 1) ** 2} ({side + 1} x {side + 1})",
        )
    return side
