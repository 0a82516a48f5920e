"""What is in a scene: two objects, where they are, how they are lit and seen, and the sentence that says so."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (40, 70, 220),
    "yellow": (235, 215, 40),
    "purple": (150, 50, 190),
    "cyan": (50, 205, 215),
    "orange": (240, 140, 30),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
SIZES = ("small", "large")
RELATIONS = ("left of", "above")
SPLITS = ("pretrain", "train", "validation", "test")
Split = Literal["pretrain", "train", "validation", "test"]

_NUM_DRAWS = 40


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """A batch of N scenes with K = 2 objects each, the first one to be mentioned first.

    The first object is always the left or the upper one (reading order), so a scene has exactly one caption:
    2^2 sizes x 8^2 colours x 6^2 shapes x 2 relations = 18,432 of them, 14.17 bits.

    Attributes:
        colour: Index into `COLOURS`, int64 (N, K).
        shape: Index into `SHAPES`, int64 (N, K).
        size: Index into `SIZES`, int64 (N, K).
        relation: Index into `RELATIONS`, int64 (N,): where the first object lies, seen from the second.
        centre: x to the right and y downward in the unit square, float32 (N, K, 2).
        radius: Half the object's extent in the unit square, float32 (N, K).
        shade: Brightness of each object, float32 (N, K).
        background: Grey level, tint (RGB), horizontal and vertical gradient (RGB each), float32 (N, 10).
        camera: Azimuth and elevation in radians and distance, float32 (N, 3); flat drawings ignore it.
        noise_seed: Seed of the pixel noise, one Python int a scene.
    """

    colour: Tensor
    shape: Tensor
    size: Tensor
    relation: Tensor
    centre: Tensor
    radius: Tensor
    shade: Tensor
    background: Tensor
    camera: Tensor
    noise_seed: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.noise_seed)


def describe(indices: Sequence[int], *, split: Split, seed: int = 0) -> Scenes:
    """Describe scenes by their indices; the same index always gives the same scene.

    Args:
        indices: Which scenes of the split, each at least 0.
        split: Splits share no scene's random numbers.
        seed: Another seed is another data set.
    """
    keys = [np.random.SeedSequence([seed, SPLITS.index(split), index]) for index in indices]
    u_NU = np.array([np.random.default_rng(key).random(_NUM_DRAWS) for key in keys]).reshape(-1, _NUM_DRAWS)
    size = _pick(u_NU[:, 4:6], len(SIZES))
    relation = _pick(u_NU[:, 6], len(RELATIONS))
    # The two objects lie in opposite halves along the relation's axis and near each other along the other axis.
    along = np.stack([0.2 + 0.08 * u_NU[:, 7], 0.72 + 0.08 * u_NU[:, 8]], 1)
    first = 0.2 + 0.6 * u_NU[:, 9]
    across = np.stack([first, np.clip(first + 0.5 * (u_NU[:, 10] - 0.5), 0.2, 0.8)], 1)
    horizontal = (relation == 0)[:, None]
    centre = np.stack([np.where(horizontal, along, across), np.where(horizontal, across, along)], -1)
    radius = np.where(size == 0, 0.085 + 0.015 * u_NU[:, 11:13], 0.15 + 0.02 * u_NU[:, 11:13])
    tint_gradients = (u_NU[:, 16:25] - 0.5) * np.repeat([0.12, 0.3, 0.3], 3)
    camera = np.stack([2 * np.pi * u_NU[:, 25], 0.2 + 0.6 * u_NU[:, 26], 2.5 + u_NU[:, 27]], 1)
    return Scenes(
        colour=torch.from_numpy(_pick(u_NU[:, 0:2], len(COLOURS))),
        shape=torch.from_numpy(_pick(u_NU[:, 2:4], len(SHAPES))),
        size=torch.from_numpy(size),
        relation=torch.from_numpy(relation),
        centre=_float(centre),
        radius=_float(radius),
        shade=_float(0.85 + 0.15 * u_NU[:, 13:15]),
        background=_float(np.concatenate([0.15 + 0.45 * u_NU[:, 15:16], tint_gradients], 1)),
        camera=_float(camera),
        noise_seed=tuple(int(key.generate_state(1, np.uint64)[0] >> 1) for key in keys),
    )


def captions(scenes: Scenes) -> list[str]:
    """The one sentence for each scene: ``a large red circle left of a small blue ring``."""
    colours = list(COLOURS)

    def phrase(row: int, k: int) -> str:
        size, colour, shape = (int(t[row, k]) for t in (scenes.size, scenes.colour, scenes.shape))
        return f"a {SIZES[size]} {colours[colour]} {SHAPES[shape]}"

    return [f"{phrase(row, 0)} {RELATIONS[int(scenes.relation[row])]} {phrase(row, 1)}" for row in range(len(scenes))]


def boxes(scenes: Scenes) -> Tensor:
    """Bounding boxes x1, y1, x2, y2 in the unit square, float32 (N, K, 4)."""
    radius_NK1 = scenes.radius[..., None]
    return torch.cat([scenes.centre - radius_NK1, scenes.centre + radius_NK1], -1).clamp(0, 1)


def digest(scenes: Scenes) -> str:
    """SHA-256 over captions and boxes on a grid of 1/1000: tells data sets apart across machines."""
    grid = (boxes(scenes).double() * 1000).round().to(torch.int32).numpy().tobytes()
    return hashlib.sha256("\n".join(captions(scenes)).encode() + grid).hexdigest()


def _pick(uniform: np.ndarray, num_choices: int) -> np.ndarray:
    return (uniform * num_choices).astype(np.int64)


def _float(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
