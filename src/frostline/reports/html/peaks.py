"""Before and after: the byte table, and a plan beside the step without one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from frostline.records import MemoryReport, PeakRow, PeakTable, Plan
from frostline.reports.html.limits import Limits
from frostline.reports.html.section import Bar, Figure, Section, joined, percent
from frostline.units import format_bytes, format_mib


@dataclass(frozen=True, kw_only=True)
class PeakView:
    """What the template of a byte table reads: bars and the rows they are of, in the same order."""

    table: PeakTable
    rows: tuple[tuple[Bar, PeakRow, str, str], ...]
    num_more: int


@dataclass(frozen=True, kw_only=True)
class PlanView:
    """What the template of a plan reads."""

    plan: Plan
    bars: tuple[Bar, ...]
    budget: float | None
    budget_text: str
    facts: dict[str, str]
    treatments: tuple[tuple[str, str, int], ...]
    num_more: int
    notes: tuple[str, ...]
    num_more_notes: int


def peaks_section(table: PeakTable, limits: Limits) -> Section:
    """All ways to run a step, beside each other."""
    shown = table.rows[: limits.num_rows]
    longest = max((row.peak_bytes for row in shown), default=0)
    rows = tuple((_bar(row, longest), row, _difference(row), _time(row)) for row in shown)
    view = PeakView(table=table, rows=rows, num_more=len(table.rows) - len(shown))
    return Section(title="Before and after", template="peaks.html.j2", view=view, figure=_smallest(table))


def _bar(row: PeakRow, longest: int) -> Bar:
    trains_nothing = row.trains == "nothing"
    counted = ""
    if row.allocator is not None:
        allocated, reserved = row.allocator.peak_allocated_bytes, row.allocator.peak_reserved_bytes
        counted = f"CUDA counted {format_mib(allocated)} MiB allocated, {format_mib(reserved)} MiB reserved"
    host = f"{format_mib(row.host_bytes)} MiB in host memory" if row.host_bytes else ""
    return Bar(
        name=row.name,
        text=format_mib(row.peak_bytes),
        share=percent(row.peak_bytes, longest),
        dark=percent(row.resident_bytes, longest),
        note=joined((f"peak at {row.peak_at}" if row.peak_at else "", host, counted)),
        style="k-none" if trains_nothing else "k-saved" if row.name.startswith("frostline") else "k-parameters",
    )


def _difference(row: PeakRow) -> str:
    if row.max_rel_grad_diff is None:
        return ""
    return f"{row.max_rel_grad_diff:.1e}" if row.max_rel_grad_diff else "0"


def _time(row: PeakRow) -> str:
    return "" if row.step_seconds_ratio is None else f"{row.step_seconds_ratio:.2f}×"


def _smallest(table: PeakTable) -> Figure:
    """The smallest peak among the ways that leave the gradients as they were."""
    true = [row for row in table.rows if row.proof_class in ("EXACT", "ROUNDING") and row.trains != "nothing"]
    if not true:
        return Figure(label="smallest true peak", value="none", note=table.system, tone="warn")
    best, worst = min(true, key=_peak), max(true, key=_peak)
    return Figure(
        label="smallest true peak",
        value=format_bytes(best.peak_bytes),
        note=f"{best.name}, {best.proof_class}; {worst.name} {format_bytes(worst.peak_bytes)}",
        tone="good",
    )


def _peak(row: PeakRow) -> int:
    return row.peak_bytes


@dataclass(frozen=True, kw_only=True)
class ComparisonView:
    """What the template of several measurements reads."""

    rows: tuple[Bar, ...]
    num_more: int


def comparison_section(measured: Sequence[tuple[str, MemoryReport]], limits: Limits) -> Section:
    """Peaks beside each other, in the order in which they were named.

    Args:
        measured: Two or more reports, each with the file it came from.
        limits: How many to show.
    """
    shown = measured[: limits.num_rows]
    longest = max(report.peak_bytes for _, report in shown)
    first, last = measured[0][1], measured[-1][1]
    rows = (
        Bar(
            name=name or f"report {at}",
            text=format_mib(report.peak_bytes),
            share=percent(report.peak_bytes, longest),
            dark=percent(report.resident_bytes, longest),
            note=joined((report.method, report.device, report.covers)),
        )
        for at, (name, report) in enumerate(shown, 1)
    )
    figure = Figure(
        label="last against first",
        value=f"{last.peak_bytes / max(1, first.peak_bytes) - 1:+,.1%}",
        note=f"{format_bytes(first.peak_bytes)} to {format_bytes(last.peak_bytes)}",
        tone="good" if last.peak_bytes < first.peak_bytes else "plain",
    )
    view = ComparisonView(rows=tuple(rows), num_more=len(measured) - len(shown))
    return Section(title="Peaks beside each other", template="comparison.html.j2", view=view, figure=figure)


def plan_section(plan: Plan, limits: Limits) -> Section:
    """What a plan does, and what it brings."""
    longest = max(plan.baseline_peak_bytes, plan.predicted_peak_bytes, plan.budget_bytes, 1)
    groups = plan.grouped()
    view = PlanView(
        plan=plan,
        bars=tuple(
            Bar(
                name=name,
                text=format_bytes(peak),
                share=percent(peak, longest),
                dark=percent(plan.resident_bytes, longest),
                style=style,
            )
            for name, peak, style in (
                ("without a plan", plan.baseline_peak_bytes, "k-parameters"),
                ("with the plan", plan.predicted_peak_bytes, "k-saved"),
            )
        ),
        budget=percent(plan.budget_bytes, longest) if plan.budget_bytes else None,
        budget_text=format_bytes(plan.budget_bytes) if plan.budget_bytes else "",
        facts={
            "budget": format_bytes(plan.budget_bytes) if plan.budget_bytes else "none: the smallest peak",
            "extra work": _work(plan),
            "peak at": plan.peak_at,
            "resident before": format_bytes(plan.resident_bytes),
        },
        treatments=tuple((*_parted(text), num_units) for text, num_units in groups[: limits.num_rows]),
        num_more=max(0, len(groups) - limits.num_rows),
        notes=plan.notes[: limits.num_rows],
        num_more_notes=max(0, len(plan.notes) - limits.num_rows),
    )
    fits = not plan.budget_bytes or plan.predicted_peak_bytes <= plan.budget_bytes
    figure = Figure(
        label="plan",
        value=format_bytes(plan.predicted_peak_bytes),
        note=f"instead of {format_bytes(plan.baseline_peak_bytes)}, {_work(plan)} work, {plan.proof_class}",
        tone="good" if fits else "bad",
    )
    return Section(title="Plan", template="plan.html.j2", view=view, figure=figure)


def _parted(text: str) -> tuple[str, str]:
    units, _, treatment = text.partition(": ")
    return units, treatment


def _work(plan: Plan) -> str:
    return f"{plan.predicted_cost:+.1%}"
