"""Plans and proofs as terminal tables."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from frostline.records import Plan, ProofCheck, ProofReport
from frostline.units import format_bytes

_MAX_PARAMETERS = 8


def plan_view(plan: Plan) -> RenderableType:
    """What a plan does to which modules, and what that gives."""
    budget = f"for a budget of {format_bytes(plan.budget_bytes)}" if plan.budget_bytes else "for the smallest peak"
    facts = {
        f"{plan.method} peak": format_bytes(plan.predicted_peak_bytes),
        "without a plan": format_bytes(plan.baseline_peak_bytes),
        "resident before": format_bytes(plan.resident_bytes),
        "peak at": plan.peak_at,
        "extra work": f"{plan.predicted_cost:.1%}",
        "gradients": plan.proof_class,
    }
    table = _table("module", "treatment", ">modules")
    for text, num_units in plan.grouped():
        units, _, treatment = text.partition(": ")
        table.add_row(escape(units), treatment, str(num_units))
    return Group(
        Text(f"plan {budget}", style="bold"),
        *(Text(f"  {name:<17} {value}") for name, value in facts.items()),
        table if plan.treated else Text("  nothing has to be done", style="bold green"),
        *(Text(f"  {note}", style="dim") for note in plan.notes),
    )


def proof_view(report: ProofReport, plan: Plan) -> RenderableType:
    """How the gradients under a plan compare with the plain step's."""
    num = len(report.per_parameter)
    equal = sum(difference.equal for difference in report.per_parameter)
    style = "bold green" if report.proof_class in ("EXACT", "ROUNDING") else "bold red"
    lines = [
        Text(f"{report.proof_class}: {equal} of {num} gradients are equal bit by bit", style=style),
        Text(f"  loss difference   {report.loss_difference:.3g}"),
        Text(f"  plan              {len(plan.treated)} of {len(plan.treatments)} modules treated"),
        Text(f"  peak              {format_bytes(plan.predicted_peak_bytes)} {plan.method}, instead of"
             f" {format_bytes(plan.baseline_peak_bytes)}"),
    ]  # fmt: skip
    if report.noise_floor is not None:
        lines.append(Text(f"  noise floor       {report.noise_floor:.3g}"))
    if not report.same_random_state:
        lines.append(Text("  random numbers    the next step draws others", style="red"))
    compared = (*report.per_parameter, *report.buffers)
    unequal = sorted((d for d in compared if not d.equal), key=lambda d: -d.max_relative)
    table = _table("parameter or buffer", ">max difference", ">cosine")
    for difference in unequal[:_MAX_PARAMETERS]:
        table.add_row(escape(difference.name), f"{difference.max_relative:.2e}", f"{difference.cosine:.6f}")
    return Group(*lines, *([table] if unequal else []), *checks_view(report.checks))


def checks_view(checks: tuple[ProofCheck, ...]) -> list[RenderableType]:
    """What else a system proves, a line each."""
    if not checks:
        return []
    table = _table("check", "verdict", "")
    for check in checks:
        style = {"BOUNDED": "bold red", "none": "bold red", "refused": "yellow"}.get(check.verdict, "green")
        table.add_row(escape(check.name), Text(check.verdict, style=style), escape(check.text))
    return [Text("\nchecks", style="bold"), table]


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    for column in columns:
        table.add_column(
            column.removeprefix(">"), justify="right" if column.startswith(">") else "left", overflow="fold"
        )
    return table
