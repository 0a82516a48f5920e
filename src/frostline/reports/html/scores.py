"""An evaluation: a chart for each quantity, a line for each method."""

from __future__ import annotations

import math
from dataclasses import dataclass

from frostline.records import Curve, EvaluationReport
from frostline.reports.html.charts import Chart, Frame, Tick, Trace, nice_ticks, number, span, y_ticks
from frostline.reports.html.limits import Limits, thinned
from frostline.reports.html.section import Figure, Section

_NUM_COLOURS = 7
_NUM_TICKS = 10
_NUM_DOTS = 24


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One quantity: its chart, and its numbers."""

    title: str
    chart: Chart | None
    header: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    num_more: int


@dataclass(frozen=True, kw_only=True)
class ScoresView:
    """What the template of an evaluation reads."""

    report: EvaluationReport
    legend: tuple[tuple[str, str, str], ...]
    panels: tuple[Panel, ...]
    facts: dict[str, str]
    num_more: int


def scores_section(report: EvaluationReport, limits: Limits) -> Section:
    """How good a system is."""
    curves = report.curves[: limits.num_rows]
    names = list(dict.fromkeys(curve.name for curve in curves))
    notes = {curve.name: curve.note for curve in curves}
    styles = {name: _style(name, at) for at, name in enumerate(names)}
    y_names = list(dict.fromkeys(curve.y_name for curve in curves))
    view = ScoresView(
        report=report,
        legend=tuple((name, styles[name], notes[name]) for name in names),
        panels=tuple(_panel(report, y_name, curves, styles, limits) for y_name in y_names),
        num_more=len(report.curves) - len(curves),
        facts={name: number(value) for name, value in list(report.facts.items())[: limits.num_rows]},
    )
    return Section(title="Evaluation", template="scores.html.j2", view=view, figure=_figure(report))


def _style(name: str, at: int) -> str:
    return "c-bound" if "bound" in name else f"c{at % _NUM_COLOURS} {'c-first' if at == 0 else ''}".strip()


def _figure(report: EvaluationReport) -> Figure:
    curve = next((curve for curve in report.curves if curve.y), None)
    if curve is None:
        return Figure(label="evaluation", value="no curves", note=report.title)
    text = _Texts((curve,))(curve.y[-1])
    at = f"at {curve.x[-1]:g} ({report.x_name})" if report.x_name else ""
    return Figure(label=curve.y_name, value=text, note=f"{curve.name} {at}".strip())


class _Texts:
    """Values as text: shares in percent, as the tables on the terminal have them."""

    def __init__(self, curves: tuple[Curve, ...]) -> None:
        finite = [y for curve in curves for y in curve.y if math.isfinite(y)]
        self.are_shares = all(0 <= y <= 1 for y in finite)

    def __call__(self, value: float) -> str:
        return f"{100 * value:.1f} %" if self.are_shares and math.isfinite(value) else number(value)

    def tick(self, value: float) -> str:
        return f"{100 * value:.0f} %" if self.are_shares else number(value)


def _panel(
    report: EvaluationReport, y_name: str, curves: tuple[Curve, ...], styles: dict[str, str], limits: Limits
) -> Panel:
    mine = tuple(curve for curve in curves if curve.y_name == y_name)
    texts = _Texts(mine)
    header = mine[0].x[: limits.num_rows // 2]
    return Panel(
        title=y_name,
        chart=_chart(report, y_name, mine, styles, texts, limits),
        header=tuple(f"{x:g}" for x in header),
        rows=tuple((curve.name, tuple(texts(y) for y in curve.y[: len(header)])) for curve in mine),
        num_more=len(mine[0].x) - len(header),
    )


def _chart(
    report: EvaluationReport,
    y_name: str,
    curves: tuple[Curve, ...],
    styles: dict[str, str],
    texts: _Texts,
    limits: Limits,
) -> Chart | None:
    places = sorted({x for curve in curves for x in curve.x})
    if len(places) < 2:
        return None
    low, high = (0.0, 1.0) if texts.are_shares else span(y for curve in curves for y in curve.y)
    frame = Frame(x_low=places[0], x_high=places[-1], y_low=low, y_high=high)
    ticks = places if len(places) <= _NUM_TICKS else nice_ticks(places[0], places[-1])
    traces = [_trace(curve, frame, styles[curve.name], texts, limits) for curve in reversed(curves)]  # the first on top
    return Chart(
        label=f"{y_name} by {report.x_name}: " + ", ".join(curve.name for curve in curves),
        title=y_name,
        traces=tuple(traces),
        x_ticks=tuple(Tick(text=f"{x:g}", at=frame.x(x)) for x in ticks),
        y_ticks=y_ticks(frame, texts.tick),
        x_name=report.x_name,
    )


def _trace(curve: Curve, frame: Frame, style: str, texts: _Texts, limits: Limits) -> Trace:
    points = thinned(list(zip(curve.x, curve.y, strict=False)), limits.num_points // 2)
    dots = points if len(points) <= _NUM_DOTS else []
    return Trace(
        name=curve.name,
        style=f"line {style}",
        path=frame.line(points),
        dots=tuple((frame.x(x), frame.y(y), f"{curve.name}, {x:g}: {texts(y)}") for x, y in dots if math.isfinite(y)),
    )
