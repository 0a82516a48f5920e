"""One large thing on a plain ground, for concepts: half of the shapes have names, the other half are just seen.

Twelve shapes in five colours on two backgrounds. Captions name six of the shapes and call the others "thing": a model
that learns from them can draw a star and cannot be asked for one. That is where textual inversion begins.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from frostline.errors import ConfigError
from frostline.scenes.description import COLOURS, SPLITS, Split

NAMED_THINGS = ("circle", "square", "triangle", "cross", "ring", "bar")
NAMELESS_THINGS = ("star", "heart", "moon", "diamond", "arrow", "ell")
THINGS = NAMED_THINGS + NAMELESS_THINGS
THING_COLOURS = ("red", "green", "blue", "yellow", "white")
THING_BACKGROUNDS = ("dark", "light")
THING_WORD = "thing"
"""What captions call a shape without a name."""

_NUM_DRAWS = 12
_STREAM = 5  # in the seeds: these pictures share no random numbers with the other scenes
_OVERSAMPLING = 4  # a power of two: coverage times colour has no rounding, so pixels are the same on every machine
_BLOCK = 32  # pictures drawn at once
_GREYS = ((15, 45), (120, 150))  # of the dark and the light background, in 1/255
_MAX_TINT, _MAX_SHADE = 20, 12


class Things(NamedTuple):
    """Pictures of things.

    Attributes:
        images: Uint8 (N, 3, S, S).
        shapes: Indices into `THINGS`, int64 (N,).
        colours: Indices into `THING_COLOURS`, int64 (N,).
        backgrounds: Indices into `THING_BACKGROUNDS`, int64 (N,).
    """

    images: Tensor
    shapes: Tensor
    colours: Tensor
    backgrounds: Tensor

    def captions(self, word: str = THING_WORD) -> list[str]:
        """The sentence for each picture, such as ``a red circle on dark``; `word` stands for shapes without a name."""
        columns = (column.tolist() for column in (self.shapes, self.colours, self.backgrounds))
        return [
            f"a {THING_COLOURS[colour]} {THINGS[shape] if THINGS[shape] in NAMED_THINGS else word}"
            f" on {THING_BACKGROUNDS[background]}"
            for shape, colour, background in zip(*columns, strict=True)
        ]

    def digest(self) -> str:
        """SHA-256 over pixels and captions: tells data sets apart across machines."""
        return hashlib.sha256("\n".join(self.captions()).encode() + self.images.numpy().tobytes()).hexdigest()


def render_things(
    indices: Sequence[int], *, split: Split, seed: int = 0, size: int = 32, shapes: Sequence[str] = THINGS
) -> Things:
    """Draw things by their numbers; the same number always gives the same picture.

    Args:
        indices: Which pictures of the split, each at least 0.
        split: Splits share no picture's random numbers.
        seed: Another seed is another data set.
        size: Height and width in pixels.
        shapes: Which shapes there are; colour, place and angle of a picture do not depend on it.

    Raises:
        ConfigError: An unknown shape, or none.
    """
    unknown = [shape for shape in shapes if shape not in THINGS]
    if unknown or not shapes:
        raise ConfigError(
            f"no such thing: {', '.join(unknown) or 'an empty list'}",
            where="shapes",
            do=f"choose from {', '.join(THINGS)}",
        )
    keys = [np.random.SeedSequence([seed, SPLITS.index(split), index, _STREAM]) for index in indices]
    u_NU = np.array([np.random.default_rng(key).random(_NUM_DRAWS) for key in keys]).reshape(-1, _NUM_DRAWS)
    chosen = np.array([THINGS.index(shape) for shape in shapes])
    shape_N = chosen[(u_NU[:, 0] * len(chosen)).astype(np.int64)]
    colour_N = (u_NU[:, 1] * len(THING_COLOURS)).astype(np.int64)
    background_N = (u_NU[:, 2] * len(THING_BACKGROUNDS)).astype(np.int64)
    cover = np.empty((len(keys), 1, size, size))
    for kind in np.unique(shape_N):
        rows = np.flatnonzero(shape_N == kind)
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            inside = _SHAPES[THINGS[kind]](*_coordinates(u_NU[block], size * _OVERSAMPLING))
            fine = inside.reshape(len(block), 1, size, _OVERSAMPLING, size, _OVERSAMPLING)
            cover[block] = fine.mean((3, 5))
    ground, paint = _colours(u_NU, colour_N, background_N)
    images = np.rint(ground + (paint - ground) * cover).astype(np.uint8)
    return Things(*(torch.from_numpy(array) for array in (images, shape_N, colour_N, background_N)))


def _coordinates(u_NU: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Across and down (N, size, size) of each fine pixel, from the centre of the thing, as it lies, in radii."""
    radius, angle = 0.34 + 0.06 * u_NU[:, 3], 0.3 * u_NU[:, 4] - 0.15
    centre = 0.46 + 0.08 * u_NU[:, 5:7]
    axis = (np.arange(size) + 0.5) / size
    across = ((axis - centre[:, :1]) / radius[:, None])[:, None, :]
    down = ((axis - centre[:, 1:]) / radius[:, None])[:, :, None]
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    return cos * across + sin * down, cos * down - sin * across


def _colours(u_NU: np.ndarray, colour_N: np.ndarray, background_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers in 0..255 (N, 3, 1, 1) of ground and thing."""
    low, high = np.array(_GREYS)[background_N].T
    ground = np.rint(low + (high - low) * u_NU[:, 7])[:, None].repeat(3, 1)
    ground[:, 2] += np.rint(_MAX_TINT * u_NU[:, 8])
    palette = np.array([COLOURS[name] for name in THING_COLOURS])
    shade = np.rint((2 * u_NU[:, 9:12] - 1) * _MAX_SHADE)
    paint = np.clip(palette[colour_N] + shade, 0, 255)
    return ground[..., None, None], paint[..., None, None]


Inside = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""x to the right and y downward (N, S, S), in radii -> whether the thing is there."""


def _disc(x: float, y: float, radius: float) -> Inside:
    return lambda across, down: (across - x) ** 2 + (down - y) ** 2 <= radius**2


def _polygon(*corners: tuple[float, float]) -> Inside:
    """Even-odd rule: a point is inside if a ray to its right meets an odd number of edges."""

    def inside(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        odd = np.zeros(x.shape, dtype=bool)
        for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
            if y0 != y1:
                odd ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) / (y1 - y0) * (y - y0) + x0)
        return odd

    return inside


def _box(width: float, height: float) -> Inside:
    return _polygon((-width, -height), (width, -height), (width, height), (-width, height))


def _union(*parts: Inside) -> Inside:
    return lambda x, y: np.logical_or.reduce([part(x, y) for part in parts])


def _without(whole: Inside, hole: Inside) -> Inside:
    return lambda x, y: whole(x, y) & ~hole(x, y)


def _star(num_points: int, outer: float, inner: float) -> Inside:
    turns = [math.pi * i / num_points for i in range(2 * num_points)]
    radii = [inner if i % 2 else outer for i in range(2 * num_points)]
    return _polygon(*((r * math.sin(t), -r * math.cos(t)) for r, t in zip(radii, turns, strict=True)))


_SHAPES: dict[str, Inside] = {
    "circle": _disc(0, 0, 0.9),
    "square": _box(0.8, 0.8),
    "triangle": _polygon((0, -1), (0.95, 0.75), (-0.95, 0.75)),
    "cross": _union(_box(0.3, 1), _box(1, 0.3)),
    "ring": _without(_disc(0, 0, 1), _disc(0, 0, 0.55)),
    "bar": _box(0.35, 1.1),
    "star": _star(5, 1.15, 0.45),
    "heart": _union(
        _disc(-0.5, -0.3, 0.5), _disc(0.5, -0.3, 0.5), _polygon((-0.97, -0.1), (0, -0.3), (0.97, -0.1), (0, 1))
    ),
    "moon": _without(_disc(0, 0, 1), _disc(0.62, -0.1, 0.9)),
    "diamond": _polygon((0, -1.1), (0.65, 0), (0, 1.1), (-0.65, 0)),
    "arrow": _polygon((-1, -0.25), (0.1, -0.25), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.25), (-1, 0.25)),
    "ell": _polygon((-0.7, -1), (-0.1, -1), (-0.1, 0.4), (0.9, 0.4), (0.9, 1), (-0.7, 1)),
}
