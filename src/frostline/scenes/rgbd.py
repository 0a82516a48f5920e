"""Rooms seen by a colour and a depth camera: each tells one half of the label, and nothing of the other half.

The label is the object's shape times the light's colour. The depth camera sees the shape and no colour. The colour
camera sees the light; the object is camouflaged in it, unless `shading` lets the light show its surface. So what can
be known is known: everything with both, one in three with either alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from frostline.scenes.description import SPLITS, Split

RGBD_SHAPES = ("sphere", "box", "cylinder")
RGBD_LIGHTS = {"red": (1.0, 0.55, 0.55), "green": (0.55, 1.0, 0.55), "blue": (0.55, 0.55, 1.0)}
RGBD_CLASSES = tuple(f"{shape} in {light} light" for shape in RGBD_SHAPES for light in RGBD_LIGHTS)
MAX_DEPTH_METRES = 5.5
"""The distance of 255; 0 is what the depth camera could not see."""

_FIELD_OF_VIEW = math.radians(60)
_FLOOR = -1.2
_NUM_DRAWS = 16
_STREAM = 3  # in the seeds: these scenes share no random numbers with the described ones
_EDGE_METRES = 0.3
_NOISE_PER_SQUARE_METRE = 0.0015


def render_rgbd(
    indices: Sequence[int], *, split: Split, seed: int = 0, size: int = 32, shading: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw rooms by their numbers; the same number always gives the same room.

    Args:
        indices: Which rooms of the split, each at least 0.
        split: Splits share no room's random numbers.
        seed: Another seed is another data set.
        size: Height and width in pixels.
        shading: 0 hides the shape from the colour camera, 1 shows it.

    Returns:
        Colour ``(N, 3, S, S)`` and depth ``(N, 1, S, S)``, both uint8, and labels ``(N,)``: indices into
        `RGBD_CLASSES`.
    """
    keys = [np.random.SeedSequence([seed, SPLITS.index(split), index, _STREAM]) for index in indices]
    generators = [np.random.default_rng(key) for key in keys]
    u_NU = torch.from_numpy(
        np.array([rng.random(_NUM_DRAWS, np.float32) for rng in generators]).reshape(-1, _NUM_DRAWS)
    )
    shape, light = (u_NU[:, 0] * len(RGBD_SHAPES)).long(), (u_NU[:, 1] * len(RGBD_LIGHTS)).long()
    rays = _rays(size)
    depth = _distances(rays, shape, u_NU)
    texture, holes, noise, grain = (_pixels(generators, kind, planes, size) for kind, planes in _PIXELS)
    tint = torch.tensor(list(RGBD_LIGHTS.values()))[light][:, :, None, None]
    lit = (1 - shading) + shading * _lambert(depth, rays, u_NU[:, 2:5])
    brightness = ((0.8 + 0.4 * u_NU[:, 5]) * (0.7 + 0.4 * u_NU[:, 6]))[:, None, None, None]
    colour = ((0.3 + 0.7 * texture) * lit * tint * brightness + 0.02 * grain).clamp(0, 1)
    noisy = depth + _NOISE_PER_SQUARE_METRE * depth.square() * noise
    edge = sum((torch.gradient(depth, dim=dim)[0].abs() for dim in (2, 3)), torch.zeros(())) > _EDGE_METRES
    seen = (noisy / MAX_DEPTH_METRES).clamp(1 / 255, 1).masked_fill(edge & (holes < 0.5), 0)
    return _bytes(colour), _bytes(seen), len(RGBD_LIGHTS) * shape + light


_PIXELS = (("uniform", 1), ("uniform", 1), ("normal", 1), ("normal", 3))
"""Per pixel: the camouflage, which edges are holes, the noise of depth and of colour."""


def _pixels(generators: Sequence[np.random.Generator], kind: str, planes: int, size: int) -> Tensor:
    shape = (planes, size, size)
    draws = [
        rng.random(shape, np.float32) if kind == "uniform" else rng.standard_normal(shape, np.float32)
        for rng in generators
    ]
    return torch.from_numpy(np.array(draws).reshape(-1, *shape))


def _bytes(values: Tensor) -> Tensor:
    return (255 * values).round().to(torch.uint8)


def _rays(size: int) -> Tensor:
    """Directions ``(3, S, S)`` of unit depth: a distance along one is a depth."""
    across = ((torch.arange(size) + 0.5) / size - 0.5) * 2 * math.tan(_FIELD_OF_VIEW / 2)
    y, x = torch.meshgrid(-across, across, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)])


def _distances(rays: Tensor, shape: Tensor, u_NU: Tensor) -> Tensor:
    """Depth ``(N, 1, S, S)`` of the object, the floor or the wall, whatever is nearest."""
    low, high = torch.tensor([-0.6, -0.4, 2.2]), torch.tensor([0.6, 0.3, 3.2])
    centre = (low + (high - low) * u_NU[:, 7:10])[:, :, None, None]
    radius = (0.45 + 0.25 * u_NU[:, 10])[:, None, None]
    hits = torch.stack(
        [
            _sphere(rays, centre, radius),
            _box(rays, centre, 0.8 * radius, (math.pi / 2 * u_NU[:, 11])[:, None, None]),
            _cylinder(rays, centre, 0.75 * radius, radius),
        ],
        1,
    )[torch.arange(len(shape)), shape]
    floor = torch.where(rays[1] < 0, _FLOOR / rays[1].clamp(max=-1e-6), torch.inf)
    wall = (4 + u_NU[:, 12])[:, None, None]
    return torch.minimum(torch.minimum(hits, floor), wall)[:, None]


def _sphere(rays: Tensor, centre: Tensor, radius: Tensor) -> Tensor:
    along, squared = (rays * centre).sum(1), rays.square().sum(0)
    inside = along.square() - squared * (centre.square().sum(1) - radius.square())
    distance = (along - inside.clamp(min=0).sqrt()) / squared
    return torch.where(inside > 0, distance, torch.inf)


def _box(rays: Tensor, centre: Tensor, half: Tensor, turn: Tensor) -> Tensor:
    cos, sin = turn.cos(), turn.sin()

    def turned(x: Tensor, y: Tensor, z: Tensor) -> list[Tensor]:
        return [cos * x - sin * z, y + torch.zeros_like(cos), sin * x + cos * z]

    near, far = torch.full_like(half, -torch.inf), torch.full_like(half, torch.inf)
    for direction, middle in zip(turned(*rays), turned(*centre.unbind(1)), strict=True):
        slope = torch.where(direction.abs() < 1e-6, 1e-6, direction)
        sides = torch.stack([(middle - half) / slope, (middle + half) / slope])
        near, far = torch.maximum(near, sides.amin(0)), torch.minimum(far, sides.amax(0))
    return torch.where((far > near) & (near > 0), near, torch.inf)


def _cylinder(rays: Tensor, centre: Tensor, radius: Tensor, half_height: Tensor) -> Tensor:
    """An upright one, with its lid."""
    x, y, z = centre.unbind(1)
    squared, along = rays[0].square() + rays[2].square(), rays[0] * x + rays[2] * z
    inside = along.square() - squared * (x.square() + z.square() - radius.square())
    side = (along - inside.clamp(min=0).sqrt()) / squared
    side = torch.where((inside > 0) & ((rays[1] * side - y).abs() < half_height), side, torch.inf)
    down = torch.where(rays[1].abs() < 1e-6, 1e-6, rays[1])
    lid = (y + half_height) / down
    on_lid = (rays[0] * lid - x).square() + (rays[2] * lid - z).square() < radius.square()
    return torch.minimum(side, torch.where((lid > 0) & on_lid, lid, torch.inf))


def _lambert(depth: Tensor, rays: Tensor, direction: Tensor) -> Tensor:
    """How brightly each point ``(N, 1, S, S)`` is lit from a direction ``(N, 3)`` in the unit cube."""
    points = depth * rays
    down, right = torch.gradient(points, dim=(2, 3))
    normal = torch.nn.functional.normalize(torch.cross(right, down, dim=1), dim=1)
    light = torch.nn.functional.normalize(2 * direction - 1, dim=1)[:, :, None, None]
    return 0.3 + 0.7 * (normal * light).sum(1, keepdim=True).abs()
