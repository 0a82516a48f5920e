"""How much of a big record a page shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MAX_TEXT = 400
"""Characters of one name or sentence; the rest is left out, and the page says so with an ellipsis."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a page holds at most, of every kind.

    Attributes:
        num_rows: Rows of a table.
        num_cards: Findings with all they have to say; further ones are a line each.
        num_tiles: Rectangles of a treemap.
        num_points: Points of a curve.
    """

    num_rows: int = 40
    num_cards: int = 30
    num_tiles: int = 60
    num_points: int = 400

    def halved(self) -> Limits:
        """Half as much of everything."""
        return Limits(
            num_rows=max(3, self.num_rows // 2),
            num_cards=max(2, self.num_cards // 2),
            num_tiles=max(4, self.num_tiles // 2),
            num_points=max(40, self.num_points // 2),
        )


def thinned(
    points: Sequence[tuple[float, float]], num_points: int, keep: int | None = None
) -> list[tuple[float, float]]:
    """A curve in about so many points: the lowest and the highest of each stretch, both ends, and point `keep`."""
    if len(points) <= num_points:
        return list(points)
    kept = {0, len(points) - 1} | ({keep} if keep is not None else set())
    num_stretches = max(1, num_points // 2 - 1)
    for i in range(num_stretches):
        stretch = range(len(points) * i // num_stretches, len(points) * (i + 1) // num_stretches)
        kept |= {min(stretch, key=lambda at: points[at][1]), max(stretch, key=lambda at: points[at][1])}
    return [points[at] for at in sorted(kept)]
