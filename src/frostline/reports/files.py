"""Records as files: CSV for a spreadsheet, PNG for a paper."""

from __future__ import annotations

import csv
from pathlib import Path

from frostline.errors import import_extra
from frostline.records import EvaluationReport, PeakTable
from frostline.units import MIB

_COLOURS = ("#0b7285", "#868e96", "#e8590c", "#7048e8", "#c92a2a", "#2b8a3e", "#1864ab")


def write_csv(report: EvaluationReport, path: Path) -> None:
    """One line a point: quantity, method, x, y; and one line a single number, without an x."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["quantity", "method", report.x_name, "value", "note"])
        for curve in report.curves:
            writer.writerows(
                (curve.y_name, curve.name, x, y, curve.note) for x, y in zip(curve.x, curve.y, strict=True)
            )
        writer.writerows((name, "", "", value, "") for name, value in report.facts.items())


def write_curves(report: EvaluationReport, path: Path) -> None:
    """A panel for each quantity, a line for each method; no file where there are no curves.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure_module = import_extra("matplotlib.figure", extra="plots")
    y_names = list(dict.fromkeys(curve.y_name for curve in report.curves))
    if not y_names:
        return
    figure = figure_module.Figure(figsize=(5.2 * len(y_names), 4.6), layout="constrained")
    names = list(dict.fromkeys(curve.name for curve in report.curves))
    for panel, y_name in zip(figure.subplots(1, len(y_names), squeeze=False)[0], y_names, strict=True):
        for curve in (curve for curve in report.curves if curve.y_name == y_name):
            at = names.index(curve.name)
            first = at == 0
            panel.plot(
                curve.x,
                [100 * y for y in curve.y],
                label=curve.name,
                color="black" if "bound" in curve.name else _COLOURS[at % len(_COLOURS)],
                linewidth=2.6 if first else 1.5,
                linestyle="-" if first else "--" if "bound" in curve.name else (0, (4, 1)),
                marker="o" if first else "s",
                markersize=5 if first else 3,
                zorder=3 if first else 2,
            )
        panel.set_xlabel(report.x_name)
        panel.set_ylabel(f"{y_name} in %")
        panel.set_ylim(-3, max(103, *panel.get_ylim()))
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False, fontsize=9)
    figure.suptitle(report.title, fontsize=11)
    figure.savefig(path, dpi=150)


def write_peaks(table: PeakTable, path: Path) -> None:
    """Horizontal bars: each way's peak, with what was there before the step in a darker shade.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure_module = import_extra("matplotlib.figure", extra="plots")
    figure = figure_module.Figure(figsize=(7.6, 0.8 + 0.42 * len(table.rows)), layout="constrained")
    panel = figure.subplots()
    rows = table.rows[::-1]
    colours = ["#0b7285" if row.name.startswith("frostline") else "#adb5bd" for row in rows]
    panel.barh([row.name for row in rows], [row.peak_bytes / MIB for row in rows], color=colours, height=0.62)
    panel.barh(
        [row.name for row in rows],
        [row.resident_bytes / MIB for row in rows],
        color="black",
        alpha=0.28,
        height=0.62,
    )
    for at, row in enumerate(rows):
        label = f" {row.peak_bytes / MIB:,.1f}  {row.proof_class if row.trains != 'nothing' else 'trains nothing'}"
        panel.text(row.peak_bytes / MIB, at, label, va="center", fontsize=8.5)
    panel.set_xlim(0, 1.25 * max(row.peak_bytes for row in rows) / MIB)
    panel.set_xlabel("peak MiB of one step (dark: resident before it)")
    panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
