"""Records as terminal tables."""

from __future__ import annotations

from rich.console import Group, JustifyMethod, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from frostline.records import Component, Curve, EvaluationReport, MemoryReport, PeakTable, RunReport
from frostline.units import format_bytes, format_count, format_mib, format_seconds

_MAX_MODULES = 8


def components_view(components: tuple[Component, ...], notes: tuple[str, ...]) -> RenderableType:
    """A run's header: what is frozen, what trains, and what to know about it."""
    table = _table("component", ">parameters", ">trainable", "mode", "")
    for part in components:
        style = "bold green" if part.num_trainable else ""
        trainable = format_count(part.num_trainable) if part.num_trainable else "-"
        parameters = format_count(part.num_parameters) if part.num_parameters else "-"
        table.add_row(part.name, parameters, trainable, part.mode, f"[dim]{escape(part.note)}[/]", style=style)
    return Group(table, *(Text(f"  {line}", style="dim") for line in notes))


def memory_view(report: MemoryReport) -> RenderableType:
    """Where the bytes of a step go."""
    title = f"{report.method} peak {format_bytes(report.peak_bytes)} on {report.device}"
    lines = [
        Text(title, style="bold"),
        Text(f"  resident before the step  {format_bytes(report.resident_bytes)}"),
        Text(f"  peak at                   {report.peak_at}"),
    ]
    if report.peak_line:
        lines.append(Text(f"  your line                 {report.peak_line}"))
    if report.allocator is not None:
        allocated, reserved = report.allocator.peak_allocated_bytes, report.allocator.peak_reserved_bytes
        lines.append(
            Text(f"  CUDA's own counters       {format_bytes(allocated)} allocated, {format_bytes(reserved)} reserved")
        )
    kinds = _table("alive at the peak", ">MiB", ">share")
    for name, num_bytes in report.by_category.items():
        kinds.add_row(name, format_mib(num_bytes), f"{num_bytes / max(1, report.peak_bytes):.1%}")
    places = _table("made by the step, by module", ">MiB")
    for name, num_bytes in sorted(report.by_module.items(), key=lambda item: -item[1])[:_MAX_MODULES]:
        places.add_row(name, format_mib(num_bytes))
    unseen = [Text(f"  not seen: {what}", style="dim") for what in report.not_seen]
    return Group(*lines, kinds, places, *unseen)


def peak_table_view(table: PeakTable) -> RenderableType:
    """The byte table: the plain rows, and what frostline makes of them."""
    view = _table("step", ">peak MiB", ">before", "proof", ">grad diff", ">time", "trains")
    for row in table.rows:
        style = "bold green" if row.name.startswith("frostline") else "red" if row.trains == "nothing" else ""
        view.add_row(
            row.name,
            format_mib(row.peak_bytes),
            format_mib(row.resident_bytes),
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
