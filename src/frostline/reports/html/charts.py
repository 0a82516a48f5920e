"""Curves as numbers that a template can draw: everything in percent of the frame, so that text keeps its size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from frostline.units import GIB, KIB, MIB

_HEAD_ROOM = 13.0
_BOX = 1000
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A labelled place on an axis, in percent of its length from the left or from the top."""

    text: str
    at: float

    @property
    def anchor(self) -> str:
        """Where the text of a tick on the x axis is held, so that it stays inside the frame."""
        return "start" if self.at < 4 else "end" if self.at > 96 else "middle"


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A curve.

    Attributes:
        name: What it shows.
        style: Its CSS classes.
        path: SVG path data in a box of 1000 by 1000.
        dots: Places of single points in percent, each with what it says when pointed at.
        legend: What it is called below the chart; nothing where it is not listed there.
    """

    name: str
    style: str
    path: str
    dots: tuple[tuple[float, float, str], ...] = ()
    legend: str = ""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A dot with a text above or beside it, or a level with one at `text_x` where it has no `x`; in percent."""

    text: str
    y: float
    x: float | None = None
    text_x: float = 100.0
    beside: bool = False

    @property
    def anchor(self) -> str:
        """On which side of the dot there is more room."""
        return "start" if self.x is not None and self.x < 50 else "end"


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A drawing of curves.

    Attributes:
        label: The drawing in words.
        traces: Areas and lines, the backmost first.
        x_ticks: Along the bottom.
        y_ticks: Up the left side.
        marks: What stands out.
        x_name: What the x axis is.
        title: What the y axis is.
    """

    label: str
    traces: tuple[Trace, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marks: tuple[Mark, ...] = ()
    x_name: str = ""
    title: str = ""

    @property
    def gutter(self) -> int:
        """The width in pixels of the texts to the left."""
        return 10 + 7 * max((len(tick.text) for tick in self.y_ticks), default=0)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The range of values that a chart shows."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        """Percent from the left."""
        return round(100 * (value - self.x_low) / ((self.x_high - self.x_low) or 1), 2)

    def y(self, value: float) -> float:
        """Percent from the top, below some room for labels."""
        share = (value - self.y_low) / ((self.y_high - self.y_low) or 1)
        return round(100 - (100 - _HEAD_ROOM) * share, 2)

    def line(self, points: Iterable[Point]) -> str:
        """Path data; a value that is not finite interrupts it."""
        return "".join(self._steps(points))

    def band(self, upper: Sequence[Point], lower: Sequence[Point]) -> str:
        """Path data of what lies between two curves."""
        return f"{self.line(upper)}{self.line(reversed(lower)).replace('M', 'L')}Z"

    def _steps(self, points: Iterable[Point]) -> Iterator[str]:
        pen = "M"
        for x, y in points:
            if math.isfinite(y):
                yield f"{pen}{_box(self.x(x))} {_box(self.y(y))}"
                pen = "L"
            else:
                pen = "M"


def _box(percent: float) -> int:
    return round(percent * _BOX / 100)


def span(values: Iterable[float]) -> tuple[float, float]:
    """The range of a y axis: from 0 unless all the values lie far above it; (0, 1) where none is finite."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    if 0 <= low <= high / 2:
        low = 0.0
    return (low, high) if high > low else (low - 0.5 * abs(low or 1), high + 0.5 * abs(high or 1))


def nice_ticks(low: float, high: float, num: int = 4) -> list[float]:
    """Round numbers inside a range, about so many."""
    if not high > low:
        return [low]
    rough = (high - low) / num
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= 0.999 * rough)
    first = math.ceil(low / step - 1e-9)
    return [at * step for at in range(first, math.floor(high / step + 1e-9) + 1)]


def y_ticks(frame: Frame, text: Callable[[float], str], num: int = 4) -> tuple[Tick, ...]:
    """Round numbers up the left side."""
    return tuple(Tick(text=text(value), at=frame.y(value)) for value in nice_ticks(frame.y_low, frame.y_high, num))


def byte_ticks(frame: Frame, num: int = 4) -> tuple[Tick, ...]:
    """Round numbers of the unit that fits, up the left side."""
    factor, unit = next(
        ((factor, unit) for factor, unit in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")) if frame.y_high >= 2 * factor),
        (1, "B"),
    )
    values = nice_ticks(frame.y_low / factor, frame.y_high / factor, num)
    return tuple(Tick(text=f"{value:g} {unit}" if value else "0", at=frame.y(value * factor)) for value in values)


def number(value: float) -> str:
    """A value in four digits."""
    return f"{value:,.0f}" if 10_000 <= abs(value) < 1e7 else f"{value:,.4g}"
