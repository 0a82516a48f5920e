"""How large each scale of a picture is: the grids that are predicted one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from frostline.errors import ConfigError

Pixels = Literal["0.06M", "0.25M", "0.60M", "1M"]
"""The published picture sizes; at ratio 1 these are 256, 512, 768 and 1024 pixels a side."""

_NUM_SCALES: dict[Pixels, int] = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}
# Heights and widths of the 13 scales, by height / width; the flat ones are the upright ones turned.
_UPRIGHT: dict[float, str] = {
    1.000: "1x1 2x2 4x4 6x6 8x8 12x12 16x16 20x20 24x24 32x32 40x40 48x48 64x64",
    1.250: "1x1 2x2 3x3 5x4 10x8 15x12 20x16 25x20 30x24 35x28 45x36 55x44 70x56",
    1.333: "1x1 2x2 4x3 8x6 12x9 16x12 20x15 24x18 28x21 36x27 48x36 60x45 72x54",
    1.500: "1x1 2x2 3x2 6x4 9x6 15x10 21x14 27x18 33x22 39x26 48x32 63x42 78x52",
    1.750: "1x1 2x2 3x3 7x4 11x6 14x8 21x12 28x16 35x20 42x24 56x32 70x40 84x48",
    2.000: "1x1 2x2 4x2 6x3 10x5 16x8 22x11 30x15 38x19 46x23 60x30 74x37 90x45",
    2.500: "1x1 2x2 5x2 10x4 15x6 20x8 25x10 30x12 40x16 50x20 65x26 80x32 100x40",
    3.000: "1x1 2x2 6x2 9x3 15x5 21x7 27x9 36x12 45x15 54x18 72x24 90x30 111x37",
}


@dataclass(frozen=True)
class Schedule:
    """The grids of one picture, from coarse to fine.

    Attributes:
        grids: Height and width of each scale in tokens.
        reference: The grid whose positions all scales share, for the rotary embedding: cell i of n along an axis
            sits at ``round(i * reference / n)``. A shorter schedule of the same family keeps it, so that its
            positions are the first of the longer one's; by default it is the last grid.
    """

    grids: tuple[tuple[int, int], ...]
    reference: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if not self.grids or any(size < 1 for grid in self.grids for size in grid):
            raise ConfigError(f"a schedule cannot have the grids {self.grids}", do="give at least one, none empty")
        if self.reference == (0, 0):
            object.__setattr__(self, "reference", self.grids[-1])

    @property
    def num_scales(self) -> int:
        """How many grids."""
        return len(self.grids)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each scale."""
        return tuple(height * width for height, width in self.grids)

    @property
    def num_tokens(self) -> int:
        """Tokens of all scales, L."""
        return sum(self.lengths)

    @property
    def ends(self) -> tuple[int, ...]:
        """Where each scale ends in the row of all tokens."""
        return tuple(sum(self.lengths[: scale + 1]) for scale in range(self.num_scales))

    @property
    def spans(self) -> tuple[slice, ...]:
        """Each scale's place in the row of all tokens."""
        return tuple(slice(end - length, end) for end, length in zip(self.ends, self.lengths, strict=True))

    @property
    def final_grid(self) -> tuple[int, int]:
        """The last grid."""
        return self.grids[-1]

    def prefix(self, num_scales: int) -> Schedule:
        """The first scales alone, at the same positions.

        Attention never looks at finer scales, so a model gives them the logits that it gives them in the whole
        schedule. A picture cannot be encoded with it: the later grids are part of its residuals.

        Raises:
            ConfigError: There are not so many.
        """
        if not 1 <= num_scales <= self.num_scales:
            raise ConfigError(f"the first {num_scales} of {self.num_scales} scales", do=f"give 1 to {self.num_scales}")
        return Schedule(self.grids[:num_scales], self.reference)

    def scaled(self, factor: int) -> Schedule:
        """The same schedule with `factor` cells for one along each axis: what lies under spatial patches."""
        return Schedule(
            tuple((factor * height, factor * width) for height, width in self.grids),
            (factor * self.reference[0], factor * self.reference[1]),
        )


def ratios() -> tuple[float, ...]:
    """The published ratios, height / width, as they are called: three digits, cut off below one."""
    return tuple(_families())


def nearest_ratio(height: int, width: int) -> float:
    """The published ratio that is nearest to a picture's."""
    return min(ratios(), key=lambda ratio: abs(ratio - height / width))


def published_schedule(pixels: Pixels = "1M", ratio: float = 1.0) -> Schedule:
    """The schedule of a published picture size and ratio.

    Source: Infinity (arXiv 2412.04431), table of dynamic resolutions. The rotary reference is the ratio's last grid
    at 1M pixels, also for smaller pictures.

    Args:
        pixels: Size of the picture.
        ratio: Height / width, one of `ratios`.

    Raises:
        ConfigError: Not a published size or ratio.
    """
    if pixels not in get_args(Pixels):
        raise ConfigError(f"pixels is {pixels!r}", do=f"choose one of {', '.join(get_args(Pixels))}")
    families = _families()
    if ratio not in families:
        near = min(families, key=lambda known: abs(known - ratio))
        raise ConfigError(f"no published schedule has the ratio {ratio}", do=f"the nearest is {near}")
    grids = families[ratio]
    return Schedule(grids[: _NUM_SCALES[pixels]], grids[-1])


def square_schedule(*sides: int) -> Schedule:
    """A schedule of square grids, such as ``square_schedule(1, 2, 4, 8)``."""
    return Schedule(tuple((side, side) for side in sides))


def _families() -> dict[float, tuple[tuple[int, int], ...]]:
    families: dict[float, tuple[tuple[int, int], ...]] = {}
    for ratio, text in _UPRIGHT.items():
        sizes = [grid.split("x") for grid in text.split()]
        families[ratio] = tuple((int(height), int(width)) for height, width in sizes)
        families.setdefault(int(1000 / ratio) / 1000, tuple((int(width), int(height)) for height, width in sizes))
    return families
