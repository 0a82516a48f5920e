"""The page: sections in the order of the verbs, their figures on top."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined

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
from frostline.reports.html.gradients import audit_section
from frostline.reports.html.limits import MAX_TEXT, Limits
from frostline.reports.html.memory import memory_section
from frostline.reports.html.peaks import comparison_section, peaks_section, plan_section
from frostline.reports.html.proofs import proof_section
from frostline.reports.html.runs import run_section
from frostline.reports.html.scores import scores_section
from frostline.reports.html.section import Section
from frostline.units import format_bytes, format_count, format_mib

R = TypeVar("R", bound=Record)
MAX_PAGE_BYTES = 200_000
_NUM_TRIES = 5
_MAX_SECTIONS = 24
_MAX_CONFIGURATION = 20_000


def render_html(
    records: Sequence[Record],
    *,
    title: str,
    names: Sequence[str] = (),
    configuration: str = "",
    warnings: Sequence[str] = (),
    source: bool = True,
) -> str:
    """Records as one page that needs nothing else: no network, no script.

    A page of more than `MAX_PAGE_BYTES` is made again with shorter lists, which say how much they leave out.

    Args:
        records: Of any kind; `StepRecord`s are the log of the run among them.
        title: The page's heading.
        names: Where each record came from; empty, or as many as there are records.
        configuration: YAML to show at the end.
        warnings: What was odd in the run.
        source: Whether findings show the lines of the program that they name, where the files can be read.

    Raises:
        ValueError: There are names for some of the records only.
    """
    named = list(zip(records, names or [""] * len(records), strict=True))
    limits, text = Limits(), ""
    for _ in range(_NUM_TRIES):
        sections = [
            replace(section, source=_tail(name), anchor=f"part-{at}")
            for at, (section, name) in enumerate(_sections(named, source, limits), 1)
        ]
        text = (
            _environment()
            .get_template("page.html.j2")
            .render(
                title=title,
                sections=sections[:_MAX_SECTIONS],
                warnings=warnings[: limits.num_rows],
                num_more_warnings=max(0, len(warnings) - limits.num_rows),
                num_more=max(0, len(sections) - _MAX_SECTIONS),
                configuration=_cut(configuration, _MAX_CONFIGURATION),
            )
        )
        if len(text.encode()) < MAX_PAGE_BYTES:
            break
        limits = limits.halved()
    return text


def _sections(named: Sequence[tuple[Record, str]], source: bool, limits: Limits) -> Iterator[tuple[Section, str]]:
    """In the order of the verbs: audit, measure, plan, prove, train, evaluate."""
    budgets = {_folder(name): plan.budget_bytes for plan, name in _of(Plan, named)}
    measured = _of(MemoryReport, named)
    for audit, name in _of(AuditReport, named):
        yield audit_section(audit, limits, source=source), name
    for memory, name in measured:
        yield memory_section(memory, limits, budgets.get(_folder(name), 0)), name
    if len(measured) > 1:
        yield comparison_section([(_tail(name), memory) for memory, name in measured], limits), ""
    for plan, name in _of(Plan, named):
        yield plan_section(plan, limits), name
    for table, name in _of(PeakTable, named):
        yield peaks_section(table, limits), name
    for proof, name in _of(ProofReport, named):
        yield proof_section(proof, limits), name
    yield from _runs(named, limits)
    for scores, name in _of(EvaluationReport, named):
        yield scores_section(scores, limits), name


def _of(kind: type[R], named: Sequence[tuple[Record, str]]) -> list[tuple[R, str]]:
    return [(record, name) for record, name in named if isinstance(record, kind)]


def _runs(named: Sequence[tuple[Record, str]], limits: Limits) -> Iterator[tuple[Section, str]]:
    """Each run with the log beside it; a log without a run is one of its own."""
    logs: dict[str, list[StepRecord]] = {}
    for step, name in _of(StepRecord, named):
        logs.setdefault(_folder(name), []).append(step)
    for report, name in _of(RunReport, named):
        yield run_section(report, logs.pop(_folder(name), ()), limits), name
    for name, steps in logs.items():
        yield run_section(None, steps, limits), name


def _tail(name: str) -> str:
    """A file with its folder's name: what is above them is nobody's business."""
    return "/".join(name.replace("\\", "/").split("/")[-2:])


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _environment() -> Environment:
    """Everything that is put into a page is escaped; a name a template misspells is an error."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates", encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"bytes": format_bytes, "mib": format_mib, "count": format_count, "cut": _cut}
    return environment


def _cut(text: str, length: int = MAX_TEXT) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
