"""A step's bytes: over time, by what they are, by module, by source line."""

from __future__ import annotations

from dataclasses import dataclass

from frostline.records import MemoryReport
from frostline.reports.html.charts import Chart
from frostline.reports.html.limits import Limits
from frostline.reports.html.section import Bar, Figure, Section, joined, percent
from frostline.reports.html.timeline import CATEGORY_STYLES, timeline_chart
from frostline.reports.html.treemap import HEIGHT, Tile, treemap
from frostline.units import format_bytes, format_mib

_NO_LINE = "before the step, or none of yours"


@dataclass(frozen=True, kw_only=True)
class MemoryView:
    """What the template of a memory report reads."""

    report: MemoryReport
    facts: dict[str, str]
    timeline: Chart | None
    categories: tuple[Bar, ...]
    tiles: tuple[Tile, ...]
    tiles_height: int
    tiles_label: str
    modules: tuple[Bar, ...]
    lines: tuple[Bar, ...]


def memory_section(report: MemoryReport, limits: Limits, budget_bytes: int = 0) -> Section:
    """A step's bytes.

    Args:
        report: The record.
        limits: How much of it to show.
        budget_bytes: What the peak may reach; 0 where nothing was asked.
    """
    over = 0 < budget_bytes < report.peak_bytes
    tiles = treemap(report.by_module, limits.num_tiles)
    lines = {line or _NO_LINE: num_bytes for line, num_bytes in report.by_line.items()}
    view = MemoryView(
        report=report,
        facts=_facts(report, budget_bytes),
        timeline=timeline_chart(report, limits.num_points, budget_bytes),
        categories=_categories(report),
        tiles=tuple(tiles),
        tiles_height=HEIGHT,
        tiles_label=f"Treemap of {format_bytes(sum(report.by_module.values()))} by module; as a table below",
        modules=_largest(report.by_module, limits.num_rows),
        lines=_largest(lines, limits.num_rows) if any(report.by_line) else (),
    )
    figure = Figure(
        label=f"{report.method} peak",
        value=format_bytes(report.peak_bytes),
        note=f"{format_bytes(report.resident_bytes)} of it before the step, on {report.device}",
        tone="bad" if over else "good" if budget_bytes else "plain",
    )
    return Section(title=f"Memory of a step, {report.method}", template="memory.html.j2", view=view, figure=figure)


def _facts(report: MemoryReport, budget_bytes: int) -> dict[str, str]:
    facts = {
        "peak at": report.peak_at,
        "your line": report.peak_line,
        "resident before": format_bytes(report.resident_bytes),
        "covers": f"{report.covers}, {report.num_ops:,} operators",
    }
    if budget_bytes:
        spare = budget_bytes - report.peak_bytes
        facts["budget"] = (
            f"{format_bytes(budget_bytes)}, {format_bytes(abs(spare))} {'over' if spare < 0 else 'to spare'}"
        )
    if report.allocator is not None:
        allocated, reserved = report.allocator.peak_allocated_bytes, report.allocator.peak_reserved_bytes
        whose = "CUDA's own counters" if report.method == "measured" else "CUDA's, simulated"
        facts[whose] = f"{format_bytes(allocated)} allocated, {format_bytes(reserved)} reserved"
    return {name: text for name, text in facts.items() if text}


def _categories(report: MemoryReport) -> tuple[Bar, ...]:
    """What is alive at the peak, and who keeps what is saved for backward."""
    bars = []
    for name, num_bytes in report.by_category.items():
        kept = (f"{part} {format_mib(n)}" for part, n in report.saved_by.items() if n) if "saved" in name else ()
        bars.append(
            Bar(
                name=name,
                text=format_mib(num_bytes),
                share=percent(num_bytes, report.peak_bytes),
                note=joined(kept),
                style=CATEGORY_STYLES.get(name, "k-buffers"),
            )
        )
    return tuple(bars)


def _largest(places: dict[str, int], num_rows: int) -> tuple[Bar, ...]:
    """Bars in the proportion of the largest one; what is left out shares the last row."""
    rows = sorted(places.items(), key=lambda item: -item[1])
    shown, rest = rows[:num_rows], rows[num_rows:]
    longest = max((size for _, size in shown), default=0)
    bars = [Bar(name=name, text=format_mib(size), share=percent(size, longest)) for name, size in shown]
    if rest:
        bars.append(
            Bar(name=f"{len(rest):,} others", text=format_mib(sum(size for _, size in rest)), share=0, style="rest")
        )
    return tuple(bars)
