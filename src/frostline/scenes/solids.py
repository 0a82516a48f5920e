"""Solids on nothing, seen from all round: each picture comes with its class and the camera's pose.

Four kinds of solid in random colour and size, marched along their distance functions, lit from one side that stays when
the camera moves. Angles are whole degrees, so that pictures can also lie in files named after them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from frostline.scenes.description import SPLITS, Split

SOLIDS = ("box", "ring", "cup", "step")
SOLID_ELEVATIONS_DEGREES = (10, 25, 40)
SOLID_CAMERA_RADIUS = 2.5
SOLID_FOV_DEGREES = 40.0

_NUM_DRAWS = 6
_STREAM = 4  # in the seeds: these pictures share no random numbers with the other scenes
_OVERSAMPLING = 2
_NUM_MARCHES, _CLOSE = 60, 2e-3
_BALL = 0.9  # all solids lie in a ball of this radius
_LIGHT = (0.505, 0.303, 0.808)
_BLOCK = 32  # pictures marched at once


class Solids(NamedTuple):
    """Pictures of solids.

    Attributes:
        images: Uint8 (N, 3, S, S), the background white.
        classes: Indices into `SOLIDS`, int64 (N,).
        azimuth_degrees: Of the camera, from the x axis towards y, float32 (N,).
        elevation_degrees: Of the camera above the horizon, float32 (N,).
    """

    images: Tensor
    classes: Tensor
    azimuth_degrees: Tensor
    elevation_degrees: Tensor


def render_solids(indices: Sequence[int], *, split: Split, seed: int = 0, size: int = 32) -> Solids:
    """Draw solids by their numbers; the same number always gives the same picture.

    Args:
        indices: Which pictures of the split, each at least 0.
        split: Splits share no picture's random numbers.
        seed: Another seed is another data set.
        size: Height and width in pixels.
    """
    keys = [np.random.SeedSequence([seed, SPLITS.index(split), index, _STREAM]) for index in indices]
    u_NU = torch.from_numpy(
        np.array([np.random.default_rng(key).random(_NUM_DRAWS) for key in keys]).reshape(-1, _NUM_DRAWS)
    ).float()
    classes = (u_NU[:, 0] * len(SOLIDS)).long()
    azimuth = (u_NU[:, 1] * 360).floor()
    elevations = torch.tensor(SOLID_ELEVATIONS_DEGREES, dtype=torch.float32)
    elevation = elevations[(u_NU[:, 2] * len(elevations)).long()]
    images = torch.empty(len(keys), 3, size, size, dtype=torch.uint8)
    for kind in range(len(SOLIDS)):
        rows = (classes == kind).nonzero()[:, 0]
        for block in rows.split(_BLOCK):
            pose = torch.deg2rad(azimuth[block]), torch.deg2rad(elevation[block])
            images[block] = _render(_DISTANCES[kind], *pose, hue=u_NU[block, 3], scale=0.85 + 0.2 * u_NU[block, 4],
                                    size=size)  # fmt: skip
    return Solids(images, classes, azimuth, elevation)


Distance = Callable[[Tensor], Tensor]
"""Points (..., 3) in units of the solid's scale -> how far the surface is at least, (...)."""


def _render(distance: Distance, azimuth: Tensor, elevation: Tensor, *, hue: Tensor, scale: Tensor, size: int) -> Tensor:
    origins, directions = _rays(azimuth, elevation, size * _OVERSAMPLING)
    scales = scale[:, None].expand(directions.shape[:2])
    along, hit = _march(distance, origins, directions, scales)
    colour = torch.ones_like(directions)
    places = (origins + directions * along[..., None])[hit] / scales[hit][:, None]
    hues = hue[:, None].expand(hit.shape)[hit]
    light = (_normals(distance, places) @ torch.tensor(_LIGHT)).clamp(min=0)
    colour[hit] = _paint(places, hues) * (0.35 + 0.65 * light[:, None])
    fine = colour.view(len(hue), size, _OVERSAMPLING, size, _OVERSAMPLING, 3).mean((2, 4))
    return (255 * fine.clamp(0, 1)).round().to(torch.uint8).permute(0, 3, 1, 2)


def _rays(azimuth: Tensor, elevation: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Origins (N, 1, 3) and unit directions (N, num^2, 3), row by row."""
    sin_a, cos_a, sin_e, cos_e = azimuth.sin(), azimuth.cos(), elevation.sin(), elevation.cos()
    back = torch.stack([cos_e * cos_a, cos_e * sin_a, sin_e], -1)[:, None]
    right = torch.stack([-sin_a, cos_a, torch.zeros_like(sin_a)], -1)[:, None]
    up = torch.stack([-cos_a * sin_e, -sin_a * sin_e, cos_e], -1)[:, None]
    across = ((torch.arange(num) + 0.5) / num * 2 - 1) * math.tan(math.radians(SOLID_FOV_DEGREES) / 2)
    y, x = torch.meshgrid(-across, across, indexing="ij")
    directions = x.reshape(-1, 1) * right + y.reshape(-1, 1) * up - back
    return SOLID_CAMERA_RADIUS * back, directions / directions.norm(dim=-1, keepdim=True)


def _march(distance: Distance, origins: Tensor, directions: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Walk along each ray as far as is certainly free; how far it came, and whether it met something."""
    ways, starts = directions.flatten(0, 1), origins.expand_as(directions).flatten(0, 1)
    middle = -(starts * ways).sum(-1)
    halves = (_BALL**2 - starts.square().sum(-1) + middle.square()).clamp(min=0).sqrt()
    flat, end, sizes = middle - halves, middle + halves, scales.reshape(-1)
    met = torch.zeros_like(flat, dtype=torch.bool)
    active = (halves > 0).nonzero()[:, 0]
    for _ in range(_NUM_MARCHES):
        points = starts[active] + ways[active] * flat[active, None]
        free = distance(points / sizes[active, None]) * sizes[active]
        met[active] = free < _CLOSE
        active, free = active[free >= _CLOSE], free[free >= _CLOSE]
        flat[active] += free
        active = active[flat[active] < end[active]]
    return flat.view(scales.shape), met.view(scales.shape)


def _normals(distance: Distance, places: Tensor) -> Tensor:
    step = 1e-3 * torch.eye(3)
    slopes = torch.stack([distance(places + shift) - distance(places - shift) for shift in step], -1)
    normals: Tensor = slopes / slopes.norm(dim=-1, keepdim=True).clamp_min(1e-9)
    return normals


def _paint(places: Tensor, hues: Tensor) -> Tensor:
    """Two colours in alternating quarters round the upright axis: they tell where the front is."""
    quarter = (torch.atan2(places[:, 1], places[:, 0]) / (math.pi / 2)).floor() % 2
    shifts = torch.tensor([0, 0.33, 0.67])
    return 0.5 + 0.45 * torch.cos(2 * math.pi * (hues[:, None] + 0.5 * (1 - quarter[:, None]) + shifts))


def _cuboid(points: Tensor, centre: tuple[float, float, float], half: tuple[float, float, float]) -> Tensor:
    out = (points - torch.tensor(centre)).abs() - torch.tensor(half)
    distance: Tensor = out.clamp(min=0).norm(dim=-1) + out.amax(-1).clamp(max=0)
    return distance


def _box(points: Tensor) -> Tensor:
    return _cuboid(points, (0, 0, 0), (0.55, 0.4, 0.45))


def _ring(points: Tensor) -> Tensor:
    x, y, z = points.unbind(-1)
    return torch.hypot(torch.hypot(x, z) - 0.45, y) - 0.2


def _cup(points: Tensor) -> Tensor:
    x, y, z = points.unbind(-1)
    r = torch.hypot(x, y)
    outside = torch.maximum(r - 0.42, z.abs() - 0.5)
    hollow = torch.maximum(r - 0.32, (z - 0.15).abs() - 0.5)
    handle = torch.hypot(torch.hypot(x - 0.5, z) - 0.22, y) - 0.07
    return torch.minimum(torch.maximum(outside, -hollow), torch.maximum(handle, 0.36 - r))


def _step(points: Tensor) -> Tensor:
    low = _cuboid(points, (0, 0, -0.3), (0.6, 0.3, 0.2))
    return torch.minimum(low, _cuboid(points, (0.35, 0, 0.2), (0.25, 0.3, 0.4)))


_DISTANCES: tuple[Distance, ...] = (_box, _ring, _cup, _step)
