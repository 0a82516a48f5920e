"""Records as terminal tables."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.console import Group, JustifyMethod, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from frostline.records import (
    AuditedPhase,
    AuditReport,
    Component,
    Curve,
    EvaluationReport,
    Finding,
    MemoryReport,
    ModuleRole,
    PeakTable,
    RunReport,
    TermFlow,
)
from frostline.reports.findings import Hanging, file_paths, findings_lines
from frostline.units import format_bytes, format_count, format_mib, format_seconds

_MAX_PLACES = 8
_MAX_ROLES = 24
_MAX_TERM_COLUMNS = 6


def components_view(components: tuple[Component, ...], notes: tuple[str, ...]) -> RenderableType:
    """A run's header: what is frozen, what trains, and what to know about it."""
    table = _table("component", ">parameters", ">trainable", "mode", "")
    for part in components:
        style = "bold green" if part.num_trainable else ""
        trainable = format_count(part.num_trainable) if part.num_trainable else "-"
        parameters = format_count(part.num_parameters) if part.num_parameters else "-"
        table.add_row(part.name, parameters, trainable, part.mode, f"[dim]{escape(part.note)}[/]", style=style)
    return Group(table, *(Text(f"  {line}", style="dim") for line in notes))


def audit_view(report: AuditReport, *, source: bool = True) -> RenderableType:
    """What an audit found: findings, phases, roles, what each loss term trains, what was not looked at, the verdict.

    Args:
        report: What was found.
        source: Whether findings show the lines of the program that they name.
    """
    parts: list[RenderableType] = list(findings_lines(report.findings, source=source))
    at = file_paths(report.findings)
    parts += (Hanging(Text("phase  ", "bold"), Text(at(_phase(phase)))) for phase in report.phases)
    if report.phases:
        parts.append(Text())
    if report.roles:
        parts += [_roles(report.roles), Text()]
    if len(report.terms) > 1:
        parts += [_terms([replace(term, line=at(term.line)) for term in report.terms]), Text()]
    parts += (Hanging(Text("accepts nothing  ", "dim"), Text(at(what), "dim")) for what in report.unused_comments)
    unseen = [what for what in report.not_examined if report.num_steps or not what.startswith("no optimizer stepped")]
    parts += (
        Hanging(Text("not examined  ", "dim"), Text(what, "dim")) for what in unseen
    )  # the verdict says the other
    parts.append(_verdict(report))
    return Group(*parts)


def _phase(phase: AuditedPhase) -> str:
    reached = f"gradients reach {phase.num_reached} of {phase.num_parameters} parameter tensors"
    skipped = f", {_counted(phase.num_skipped, 'update')} skipped" if phase.num_skipped else ""
    steps, backwards = _counted(phase.num_steps, "step"), _counted(phase.num_backwards, "backward")
    return f"{phase.name}; {steps}, {backwards}{skipped}; {reached}"


def _roles(roles: tuple[ModuleRole, ...]) -> Table:
    """One row a module; numbered ones that play the same role share one."""
    alike: dict[tuple[str, str, bool, str], list[str]] = {}
    for row in roles:
        key = (re.sub(r"(?<=\.)\d+(?=\.|$)", "*", row.module), row.role, row.cacheable, row.why)
        alike.setdefault(key, []).append(row.module)
    table = _table("module", "role", "cacheable", "why")
    for (pattern, role, cacheable, why), names in list(alike.items())[:_MAX_ROLES]:
        name = names[0] if len(names) == 1 else f"{pattern} ({len(names)})"
        style = "bold green" if role == "trainable" else ""
        table.add_row(escape(name), role, "yes" if cacheable else "no", why, style=style)
    if len(alike) > _MAX_ROLES:
        table.add_row(f"{len(alike) - _MAX_ROLES} others", style="dim")
    return table


def _terms(terms: Sequence[TermFlow]) -> Table:
    """Which term trains what: a column a module, by the outer names where the inner ones are too many."""
    modules = list(dict.fromkeys(module for term in terms for module in term.modules))
    depth = max((module.count(".") + 1 for module in modules), default=1)
    while depth > 1 and len({_outer(module, depth) for module in modules}) > _MAX_TERM_COLUMNS:
        depth -= 1
    columns = list(dict.fromkeys(_outer(module, depth) for module in modules))
    if len(columns) > _MAX_TERM_COLUMNS:
        return _terms_listed(terms)
    table = _table("loss term: tensors reached", "at", *(f">{escape(column)}" for column in columns))
    for term in terms:
        counts = Counter[str]()
        for module, count in term.modules.items():
            counts[_outer(module, depth)] += count
        table.add_row(escape(term.term), term.line, *(str(counts[column] or "-") for column in columns))
    return table


def _terms_listed(terms: Sequence[TermFlow]) -> Table:
    table = _table("loss term", "at", "tensors reached")
    for term in terms:
        reached = [f"{module} ({count})" for module, count in term.modules.items() if count]
        more = f" and {len(reached) - _MAX_PLACES} more" if len(reached) > _MAX_PLACES else ""
        table.add_row(escape(term.term), term.line, escape(", ".join(reached[:_MAX_PLACES]) + more) or "nothing")
    return table


def _outer(module: str, depth: int) -> str:
    return ".".join(module.split(".")[:depth])


def _verdict(report: AuditReport) -> RenderableType:
    """What the record says of itself, how long it took, and where to read on."""
    open_ = [finding for finding in report.findings if not finding.accepted]
    took = f" ({format_seconds(report.wall_seconds)})" if report.wall_seconds and report.num_steps else ""
    pages = list(dict.fromkeys(f"docs/rules/{finding.code}.md" for finding in _worst(open_)))
    read = f": see {', '.join(pages[:3])}" if pages and report.num_steps else ""
    levels = {finding.level for finding in open_}
    bad, odd = "fault" in levels, "cost" in levels or not report.num_steps
    return Hanging(
        Text(), Text(f"{report.verdict}{took}{read}", "bold " + ("red" if bad else "yellow" if odd else "green"))
    )


def _worst(findings: list[Finding]) -> Iterator[Finding]:
    """The faults; the costs where there are none."""
    faults = [finding for finding in findings if finding.level == "fault"]
    yield from faults or (finding for finding in findings if finding.level == "cost")


def memory_view(report: MemoryReport) -> RenderableType:
    """Where the bytes of a step go."""
    title = f"{report.method} peak {format_bytes(report.peak_bytes)} on {report.device}"
    lines = [
        Text(title, style="bold"),
        Text(f"  covers                    {report.covers}"),
        Text(f"  resident before           {format_bytes(report.resident_bytes)}"),
        Text(f"  peak at                   {report.peak_at}"),
    ]
    if report.peak_line:
        lines.append(Text(f"  your line                 {report.peak_line}"))
    if report.allocator is not None:
        allocated, reserved = report.allocator.peak_allocated_bytes, report.allocator.peak_reserved_bytes
        whose = "CUDA's own counters  " if report.method == "measured" else "CUDA's, simulated    "
        lines.append(Text(f"  {whose}     {format_bytes(allocated)} allocated, {format_bytes(reserved)} reserved"))
    kinds = _table("alive at the peak", ">MiB", ">share")
    for name, num_bytes in report.by_category.items():
        kinds.add_row(name, format_mib(num_bytes), f"{num_bytes / max(1, report.peak_bytes):.1%}")
        for part, part_bytes in report.saved_by.items() if name == "saved for backward" else ():
            kinds.add_row(f"  by {part}", format_mib(part_bytes), "", style="dim")
    tables = [kinds, _largest("made by the step, by module", report.by_module)]
    if any(report.by_line):
        named = {line or "before the step, or none of yours": num_bytes for line, num_bytes in report.by_line.items()}
        tables.append(_largest("alive at the peak, by your line", named))
    assumed = [Text(f"  assumes: {what}", style="dim") for what in report.assumes]
    unseen = [Text(f"  not seen: {what}", style="dim") for what in report.not_seen]
    return Group(*lines, *tables, *assumed, *unseen)


def _largest(title: str, places: dict[str, int]) -> Table:
    table = _table(title, ">MiB")
    rows = sorted(places.items(), key=lambda item: -item[1])
    for name, num_bytes in rows[:_MAX_PLACES]:
        table.add_row(escape(name), format_mib(num_bytes))
    if rows[_MAX_PLACES:]:
        rest = sum(num_bytes for _, num_bytes in rows[_MAX_PLACES:])
        table.add_row(f"{len(rows) - _MAX_PLACES} others", format_mib(rest), style="dim")
    return table


def peak_table_view(table: PeakTable) -> RenderableType:
    """The byte table: the plain rows, and what frostline makes of them."""
    offloads = any(row.host_bytes for row in table.rows)
    host = (">host",) if offloads else ()
    view = _table("step", ">peak MiB", ">before", *host, "proof", ">grad diff", ">time", "trains")
    for row in table.rows:
        style = "bold green" if row.name.startswith("frostline") else "red" if row.trains == "nothing" else ""
        view.add_row(
            row.name,
            format_mib(row.peak_bytes),
            format_mib(row.resident_bytes),
            *((format_mib(row.host_bytes) if row.host_bytes else "-",) if offloads else ()),
            row.proof_class,
            "-" if row.max_rel_grad_diff is None else f"{row.max_rel_grad_diff:.1e}",
            "-" if row.step_seconds_ratio is None else f"{row.step_seconds_ratio:.2f}x",
            row.trains,
            style=style,
        )
    places: dict[str, list[str]] = {}
    for row in table.rows:
        places.setdefault(row.peak_at, []).append(row.name)
    counted = [
        Text(
            f"  {row.name}: CUDA's allocator counted {format_mib(row.allocator.peak_allocated_bytes)} MiB allocated,"
            f" {format_mib(row.allocator.peak_reserved_bytes)} MiB reserved",
            style="dim",
        )
        for row in table.rows
        if row.allocator
    ]
    peaks = [Text(f"  peak at {place}: {', '.join(names)}", style="dim") for place, names in places.items()]
    return Group(view, Text(f"  {table.setting}", style="dim"), *counted, *peaks)


def run_view(report: RunReport) -> RenderableType:
    """What a training run did."""
    state = "interrupted, saved" if report.interrupted else "done"
    lines = [
        Text(
            f"{report.system}: {state} after {report.num_steps} steps in {format_seconds(report.wall_seconds)}; "
            f"{format_count(report.num_trainable)} parameters trained, {format_count(report.num_frozen)} frozen"
        )
    ]
    for first, last in zip(report.first, report.last, strict=True):
        lines.append(
            Text(f"  {first.phase}: loss {first.loss:.4f} -> {last.loss:.4f}, {last.num_skipped} updates skipped")
        )
    lines.append(Text(f"  {report.directory}", style="bold"))
    return Group(*lines)


def evaluation_view(report: EvaluationReport) -> RenderableType:
    """Scores over the sweep, one table a quantity, and what to know about each method below."""
    parts: list[RenderableType] = [Text(report.title, style="bold")]
    for y_name in dict.fromkeys(curve.y_name for curve in report.curves):
        parts.append(_curves(report.x_name, y_name, [c for c in report.curves if c.y_name == y_name]))
    notes = dict.fromkeys((curve.name, curve.note) for curve in report.curves if curve.note)
    facts = ", ".join(f"{name} {value:,.6g}" for name, value in report.facts.items())
    lines = [*(f"{name}: {note}" for name, note in notes), facts]
    return Group(*parts, *(Text(f"  {line}", style="dim") for line in lines))


def _counted(number: int, name: str) -> str:
    return f"{number or 'no'} {name}{'' if number == 1 else 's'}"


def _curves(x_name: str, y_name: str, curves: list[Curve]) -> Table:
    table = _table(f"{y_name} in %", *(f">{x:g}" for x in curves[0].x))
    table.caption, table.caption_justify = f"by {x_name}", "left"
    for curve in curves:
        table.add_row(
            curve.name, *(f"{100 * y:.1f}" for y in curve.y), style="bold green" if curve is curves[0] else ""
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    for column in columns:
        justify: JustifyMethod = "right" if column.startswith(">") else "left"
        table.add_column(column.removeprefix(">"), justify=justify, overflow="fold")
    return table
