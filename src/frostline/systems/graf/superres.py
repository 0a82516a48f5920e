"""Super-resolution of a rendered image that keeps to it exactly ("CCSR": consistency-controlling super-resolution)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frostline.errors import ShapeError
from frostline.systems.graf.config import CcsrConfig


class SuperResolution(nn.Module):
    """An image and its view's latent image to a larger image whose averages over squares are the image.

    Args:
        config: Scale, number of views, sizes.

    Source: Han et al., Super-NeRF (2023): a latent image a view. Bahat and Michaeli, Explorable super resolution
    (2020): a module that makes the result consistent; here the exact projection onto consistent images, `project`.
    """

    def __init__(self, config: CcsrConfig) -> None:
        super().__init__()
        self.config = config
        width, scale = config.width, config.scale
        self.latents = nn.Parameter(torch.empty(config.num_views, 3, config.latent_size, config.latent_size))
        nn.init.normal_(self.latents, std=0.1)
        self.net = nn.Sequential(
            nn.Conv2d(6, width, 3, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width, width, 3, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width, width, 3, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width, 3 * scale**2, 3, padding=1),
            nn.PixelShuffle(scale),
        )

    def forward(self, images: Tensor, views: Tensor) -> Tensor:
        """Enlarge.

        Args:
            images: Whole ones, (B, 3, H, W).
            views: Of each, int64 (B,), below `num_views`.

        Returns:
            (B, 3, s H, s W).
        """
        latents = _resize(self.latents[views], images.shape[-2:])
        detail = self.net(torch.cat([images, latents], 1))
        smooth = F.interpolate(images, scale_factor=self.config.scale, mode="bilinear", align_corners=False)
        return project(smooth + detail, images, self.config.scale)


def project(large: Tensor, small: Tensor, scale: int) -> Tensor:
    """The nearest image to `large` whose average over each `scale` x `scale` square is the pixel of `small`.

    Args:
        large: (B, C, s H, s W).
        small: (B, C, H, W).
        scale: s.

    Raises:
        ShapeError: The sizes do not fit.
    """
    expected = (*small.shape[:-2], scale * small.shape[-2], scale * small.shape[-1])
    if large.shape != expected:
        raise ShapeError("the large image", expected=tuple(expected), actual=tuple(large.shape))
    return large + F.interpolate(small - F.avg_pool2d(large, scale), scale_factor=scale, mode="nearest")


def shrink(images: Tensor, scale: int) -> Tensor:
    """Averages over squares, what `project` keeps.

    Raises:
        ShapeError: A side is no multiple of the scale.
    """
    if images.shape[-1] % scale or images.shape[-2] % scale:
        multiple = f"a multiple of {scale}"
        raise ShapeError("the image to shrink", expected=("B", "C", multiple, multiple), actual=tuple(images.shape))
    return F.avg_pool2d(images, scale)


def _resize(images: Tensor, size: torch.Size) -> Tensor:
    """Every entry counts: averages where the size shrinks, interpolates where it grows."""
    if images.shape[-2:] == size:
        return images
    if images.shape[-1] > size[-1]:
        return F.interpolate(images, size=size, mode="area")
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)
