"""Random changes to all that the discriminator sees: with few images it learns them by heart otherwise."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from frostline.systems.graf.config import DiscriminatorConfig
from frostline.systems.graf.noise import ray_seeds, uniform

_STREAM = 8  # of random numbers: others belong to rendering
_SHIFT = 0.125


def augment(images: Tensor, seeds: Tensor, config: DiscriminatorConfig, *, real: bool = False) -> Tensor:
    """Change brightness, saturation and contrast, or move images by up to an eighth; differentiable.

    Args:
        images: From -1 to 1, (B, C, H, W).
        seeds: Of the images, int64 (B,).
        config: What is done.
        real: Whether these are the real images of a step: they are not changed as the rendered ones are.

    Source: Zhao et al., Differentiable augmentation for data-efficient GAN training (2020).
    """
    if config.augmentation == "none":
        return images
    numbers = uniform(ray_seeds(seeds, 1)[:, 0], 5, stream=_STREAM + real, dtype=images.dtype)
    if config.augmentation in ("colour", "both"):
        brightness, saturation, contrast = numbers[:, :3, None, None, None].unbind(1)
        images = images + (brightness - 0.5)
        grey = images.mean(1, keepdim=True)
        images = grey + (images - grey) * (2 * saturation)
        mean = images.mean((1, 2, 3), keepdim=True)
        images = mean + (images - mean) * (contrast + 0.5)
    if config.augmentation in ("translation", "both"):
        images = _moved(images, (2 * numbers[:, 3:] - 1) * 2 * _SHIFT)
    return images


def _moved(images: Tensor, shifts: Tensor) -> Tensor:
    """By shifts (B, 2) in units of half an image; what comes in has the border's colour."""
    matrix = torch.eye(2, 3, dtype=images.dtype, device=images.device).repeat(len(images), 1, 1)
    matrix[:, :, 2] = shifts
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
