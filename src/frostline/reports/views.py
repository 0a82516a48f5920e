"""Any record as its terminal view."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from frostline.records import (
    AuditReport,
    EvaluationReport,
    MemoryReport,
    PeakTable,
    Plan,
    ProofReport,
    Record,
    RunReport,
    StepRecord,
)
from frostline.reports.plans import checks_view, plan_view
from frostline.reports.terminal import audit_view, evaluation_view, memory_view, peak_table_view, run_view

_BLOCKS = "▁▂▃▄▅▆▇█"
_NUM_BLOCKS = 40


def record_views(records: Sequence[Record], *, source: bool = True) -> Iterator[RenderableType]:
    """The view of each record; the steps of one log share one.

    Args:
        records: Of any kind.
        source: Whether findings show the lines of the program that they name.
    """
    steps: list[StepRecord] = []
    for record in records:
        if isinstance(record, StepRecord):
            steps.append(record)
            continue
        if steps:
            yield steps_view(steps)
            steps = []
        yield _view(record, source)
    if steps:
        yield steps_view(steps)


def _view(
    record: AuditReport | MemoryReport | PeakTable | Plan | ProofReport | RunReport | EvaluationReport, source: bool
) -> RenderableType:
    match record:
        case AuditReport():
            return audit_view(record, source=source)
        case MemoryReport():
            return memory_view(record)
        case PeakTable():
            return peak_table_view(record)
        case Plan():
            return plan_view(record)
        case ProofReport():
            return proof_lines(record)
        case RunReport():
            return run_view(record)
        case EvaluationReport():
            return evaluation_view(record)


def proof_lines(report: ProofReport) -> RenderableType:
    """How two steps' gradients compare, where the plan between them is not at hand."""
    num_equal = sum(difference.equal for difference in report.per_parameter)
    style = "bold green" if report.proof_class in ("EXACT", "ROUNDING") else "bold yellow"
    lines = [
        Text(f"{report.proof_class}: {num_equal} of {len(report.per_parameter)} gradients are equal bit by bit", style),
        Text(f"  loss difference   {report.loss_difference:.3g}"),
    ]
    if report.noise_floor is not None:
        lines.append(Text(f"  noise floor       {report.noise_floor:.3g}"))
    if report.worst is not None and not report.worst.equal:
        lines.append(Text(f"  worst             {report.worst.name}, {report.worst.max_relative:.2e}"))
    return Group(*lines, *checks_view(report.checks))


def steps_view(steps: Sequence[StepRecord]) -> RenderableType:
    """A log: the loss of each phase from its first line to its last."""
    phases: dict[str, list[StepRecord]] = {}
    for step in steps:
        phases.setdefault(step.phase, []).append(step)
    lines = []
    for name, mine in phases.items():
        first, last = mine[0], mine[-1]
        head = f"{name}: steps {first.step} to {last.step}, loss {first.loss:.4f} -> {last.loss:.4f}  "
        lines.append(Text.assemble((head, "bold"), sparkline(step.loss for step in mine)))
    return Group(*lines)


def sparkline(values: Iterable[float]) -> str:
    """A curve of block characters, at most 40 of them; a gap where a value is not finite."""
    held = list(values)
    count = min(len(held), _NUM_BLOCKS)
    picked = [held[round(at * (len(held) - 1) / max(1, count - 1))] for at in range(count)]
    finite = [value for value in picked if math.isfinite(value)]
    if not finite:
        return " " * count
    low, high = min(finite), max(finite)
    scale = (len(_BLOCKS) - 1) / ((high - low) or 1)
    return "".join(_BLOCKS[round((value - low) * scale)] if math.isfinite(value) else " " for value in picked)
