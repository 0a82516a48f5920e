"""The 2-D renderer: antialiased signed-distance shapes on a shaded background, all scenes at once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from frostline.scenes.description import COLOURS, Scenes

_NOISE_STD = 0.03


def render_flat(scenes: Scenes, size: int = 64) -> Tensor:
    """Draw scenes from straight above.

    Args:
        scenes: N scenes.
        size: Height and width in pixels.

    Returns:
        RGB in [0, 1], float32 (N, 3, size, size).
    """
    axis = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    grey, tint, across, down = scenes.background[..., None, None].split([1, 3, 3, 3], dim=1)
    image = grey + tint + across * (x - 0.5) + down * (y - 0.5)
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.float32) / 255
    for k in range(scenes.colour.shape[1]):
        centre, radius = scenes.centre[:, k, :, None, None], scenes.radius[:, k, None, None]
        distance = _distance((x - centre[:, 0]) / radius, (y - centre[:, 1]) / radius, scenes.shape[:, k])
        cover = torch.sigmoid(-distance * radius * size * 1.5)[:, None]
        paint = palette[scenes.colour[:, k]] * scenes.shade[:, k, None]
        image = image * (1 - cover) + paint[..., None, None] * cover
    noise = [np.random.default_rng(s).standard_normal((3, size, size), np.float32) for s in scenes.noise_seed]
    noisy: Tensor = image + _NOISE_STD * torch.from_numpy(np.array(noise).reshape(image.shape))
    return noisy.clamp(0, 1)


def _distance(x: Tensor, y: Tensor, shape: Tensor) -> Tensor:
    """Signed distance (N, S, S) to each scene's shape, in units of its radius; the order is that of `SHAPES`."""
    ax, ay, r = x.abs(), y.abs(), (x.square() + y.square()).sqrt()
    candidates = (
        r - 1,
        torch.maximum(ax, ay) - 0.87,
        torch.maximum(y - 0.75, (1.75 * ax - y - 0.95) * 0.5),
        (ax + ay) * 0.75 - 0.85,
        torch.maximum(torch.minimum(ax, ay) - 0.32, torch.maximum(ax, ay) - 1),
        (r - 0.72).abs() - 0.28,
    )
    return torch.stack(candidates, 1)[torch.arange(len(shape)), shape]
