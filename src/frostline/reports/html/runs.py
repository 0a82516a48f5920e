"""A training run: its header, its loss, and what else changed from step to step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from frostline.records import RunReport, StepRecord
from frostline.reports.html.charts import Chart, Frame, Mark, Tick, Trace, byte_ticks, nice_ticks, number, span, y_ticks
from frostline.reports.html.limits import Limits, thinned
from frostline.reports.html.section import Figure, Section, counted, joined, percent
from frostline.units import format_bytes, format_count, format_seconds

_NUM_SMALL = 12


@dataclass(frozen=True, kw_only=True)
class PhaseView:
    """A phase: from its first to its last step."""

    name: str
    first: StepRecord
    last: StepRecord
    loss: Chart | None
    small: tuple[Chart, ...]


@dataclass(frozen=True, kw_only=True)
class RunView:
    """What the template of a run reads."""

    report: RunReport | None
    facts: dict[str, str]
    trained: float
    phases: tuple[PhaseView, ...]
    num_more: int


def run_section(report: RunReport | None, steps: Sequence[StepRecord], limits: Limits) -> Section:
    """A training run.

    Args:
        report: Its record, where there is one.
        steps: Its log, of all phases.
        limits: How much of it to show.
    """
    logged: dict[str, list[StepRecord]] = {}
    for step in steps:
        logged.setdefault(step.phase, []).append(step)
    firsts = {step.phase: step for step in (report.first if report else ())}
    lasts = {step.phase: step for step in (report.last if report else ())}
    names = list(dict.fromkeys([*firsts, *lasts, *logged]))
    phases = [
        _phase(name, firsts.get(name), lasts.get(name), logged.get(name, []), limits)
        for name in names[: limits.num_rows]
    ]
    view = RunView(
        report=report,
        facts=_facts(report) if report else {},
        trained=percent(report.num_trainable, report.num_trainable + report.num_frozen) if report else 0.0,
        phases=tuple(phases),
        num_more=max(0, len(names) - limits.num_rows),
    )
    return Section(title="Training run", template="run.html.j2", view=view, figure=_figure(report, phases))


def _facts(report: RunReport) -> dict[str, str]:
    return {
        "system": report.system,
        "steps": f"{report.num_steps:,}",
        "took": format_seconds(report.wall_seconds),
        "trained": f"{format_count(report.num_trainable)} parameters",
        "frozen": f"{format_count(report.num_frozen)} parameters",
        "directory": report.directory,
    }


def _figure(report: RunReport | None, phases: Sequence[PhaseView]) -> Figure:
    num_steps = report.num_steps if report else max((phase.last.step for phase in phases), default=0)
    losses = (f"{phase.name} loss {number(phase.first.loss)} → {number(phase.last.loss)}" for phase in phases[:2])
    diverged = any(not math.isfinite(phase.last.loss) for phase in phases)
    interrupted = report is not None and report.interrupted
    return Figure(
        label="interrupted after" if interrupted else "trained",
        value=counted(num_steps, "step"),
        note=joined(losses),
        tone="bad" if diverged else "warn" if interrupted else "plain",
    )


def _phase(
    name: str, first: StepRecord | None, last: StepRecord | None, logged: list[StepRecord], limits: Limits
) -> PhaseView:
    known = [*([first] if first else []), *logged, *([last] if last else [])]
    num_points = max(20, limits.num_points // 4)
    terms = list(dict.fromkeys(term for step in logged for term in step.terms))
    kinds: dict[str, Callable[[StepRecord], float]] = {}
    if len(terms) > 1:
        kinds |= {term: _term(term) for term in terms}
    kinds |= {
        "gradient norm": lambda step: step.gradient_norm,
        "learning rate": lambda step: step.learning_rate,
        "loss scale": lambda step: step.loss_scale,
        "seconds a step": lambda step: step.step_seconds + step.data_seconds,
    }
    small = [_curve(kind, logged, value, num_points, number) for kind, value in kinds.items()]
    if len({step.peak_bytes for step in logged}) > 1:
        small.append(_curve("peak", logged, lambda step: float(step.peak_bytes), num_points, format_bytes))
    loss = _curve("loss", logged, lambda step: step.loss, limits.num_points, number, num_ticks=4)
    drawn = [chart for chart in small if chart is not None and not _is_flat(chart)]
    return PhaseView(name=name, first=known[0], last=known[-1], loss=loss, small=tuple(drawn[:_NUM_SMALL]))


def _term(name: str) -> Callable[[StepRecord], float]:
    return lambda step: step.terms.get(name, math.nan)


def _is_flat(chart: Chart) -> bool:
    return "always" in chart.label


def _curve(
    title: str,
    steps: Sequence[StepRecord],
    value: Callable[[StepRecord], float],
    num_points: int,
    text: Callable[[float], str],
    *,
    num_ticks: int = 2,
) -> Chart | None:
    """One quantity over the steps, with its last value at its end; None where there are not two of them."""
    whole = [(float(step.step), value(step)) for step in steps]
    finite = [point for point in whole if math.isfinite(point[1])]
    if len(finite) < 2:
        return None
    points = thinned(whole, num_points)
    low, high = span(y for _, y in finite)
    frame = Frame(x_low=whole[0][0], x_high=whole[-1][0], y_low=low, y_high=high)
    x, y = finite[-1]
    flat = len({y for _, y in finite}) == 1
    said = f"always {text(y)}" if flat else f"from {text(finite[0][1])} to {text(y)}"
    return Chart(
        label=f"{title} over {counted(int(whole[-1][0]), 'step')}, {said}",
        title=title,
        traces=(Trace(name=title, style="line k-saved", path=frame.line(points)),),
        x_ticks=tuple(
            Tick(text=f"{at:,.0f}", at=frame.x(at)) for at in nice_ticks(frame.x_low, frame.x_high, num_ticks + 1)
        ),
        y_ticks=byte_ticks(frame, num_ticks) if text is format_bytes else y_ticks(frame, number, num_ticks),
        marks=(Mark(text=text(y), x=frame.x(x), y=frame.y(y)),),
        x_name="step; a point is the mean since the one before" if num_ticks > 2 else "step",
    )
