"""Bytes alive over a step, by what they are, with the peak and the budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

from frostline.records import MemoryReport
from frostline.reports.html.charts import Chart, Frame, Mark, Tick, Trace, byte_ticks
from frostline.reports.html.limits import thinned
from frostline.units import format_bytes

CATEGORY_STYLES = {
    "parameters": "k-parameters",
    "buffers": "k-buffers",
    "optimizer state": "k-optimizer",
    "inputs": "k-inputs",
    "gradients": "k-gradients",
    "saved for backward": "k-saved",
    "temporaries": "k-temporaries",
}
"""By category in the order they are stacked, from the bottom: what lasts lies below what comes and goes."""


def timeline_chart(report: MemoryReport, num_points: int, budget_bytes: int = 0) -> Chart | None:
    """Categories stacked over the step; None where the report has fewer than two points.

    A report of an older version knows only the total, which is split at what was there before the step.

    Args:
        report: The record.
        num_points: At about how many points to draw it.
        budget_bytes: What the peak may reach; 0 where nothing was asked.
    """
    points = report.timeline
    if len(points) < 2:
        return None
    top = max(range(len(points)), key=lambda at: points[at].live_bytes)
    peak_bytes = points[top].live_bytes
    kept = thinned([(at, point.live_bytes) for at, point in enumerate(points)], num_points, keep=top)
    places = [int(at) for at, _ in kept]
    x_values = [float(points[at].event) for at in places]
    frame = Frame(x_low=x_values[0], x_high=x_values[-1], y_low=0, y_high=max(peak_bytes, budget_bytes, 1))
    layers = {name: [series[at] for at in places] for name, series in _layers(report).items()}
    total = [(x, float(points[at].live_bytes)) for x, at in zip(x_values, places, strict=True)]
    until = f"to a peak of {format_bytes(peak_bytes)}" + (f", budget {format_bytes(budget_bytes)}" * bool(budget_bytes))
    return Chart(
        label=f"Bytes alive over the step by category, from {format_bytes(points[0].live_bytes)} {until}",
        traces=(*_bands(frame, x_values, layers), Trace(name="all", style="line c-total", path=frame.line(total))),
        x_ticks=(Tick(text="step begins", at=0), Tick(text="step ends", at=100)),
        y_ticks=byte_ticks(frame),
        marks=tuple(_marks(frame, float(points[top].event), peak_bytes, budget_bytes)),
        x_name=f"{points[-1].event:,} allocations and releases, in order",
    )


def _layers(report: MemoryReport) -> dict[str, Sequence[int]]:
    """Bytes at each point, the lowest layer first; categories that are never there are left out."""
    known = report.timeline_by_category
    if known and all(len(series) == len(report.timeline) for series in known.values()):
        order = dict.fromkeys((*CATEGORY_STYLES, *known))
        return {name: known[name] for name in order if name in known and any(known[name])}
    live = [point.live_bytes for point in report.timeline]
    before = [min(size, report.resident_bytes) for size in live]
    return {
        "there before the step": before,
        "made by it": [size - least for size, least in zip(live, before, strict=True)],
    }


def _bands(frame: Frame, x_values: Sequence[float], layers: dict[str, list[int]]) -> Iterator[Trace]:
    """Each layer down to the floor, the highest first: the next one covers what is not its own."""
    tops = list(accumulate(layers.values(), lambda below, layer: [a + b for a, b in zip(below, layer, strict=True)]))
    floor = [(frame.x_low, 0.0), (frame.x_high, 0.0)]
    for (name, layer), heights in reversed(list(zip(layers.items(), tops, strict=True))):
        upper = [(x, float(height)) for x, height in zip(x_values, heights, strict=True)]
        yield Trace(
            name=f"{name}, at most {format_bytes(max(layer))}",
            style=f"area {_style(name)}",
            path=frame.band(upper, floor),
            legend=name,
        )


def _style(name: str) -> str:
    whole = {"there before the step": "k-parameters", "made by it": "k-saved"}
    return (CATEGORY_STYLES | whole).get(name, "k-buffers")


def _marks(frame: Frame, event: float, peak_bytes: int, budget_bytes: int) -> Iterator[Mark]:
    at = frame.x(event)
    yield Mark(text=f"peak {format_bytes(peak_bytes)}", x=at, y=frame.y(peak_bytes), beside=budget_bytes > 0)
    if budget_bytes:
        yield Mark(text=f"budget {format_bytes(budget_bytes)}", y=frame.y(budget_bytes), text_x=100 if at < 60 else 40)
