"""How good a trained system is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One quantity over another.

    Attributes:
        name: What the legend says.
        y_name: The quantity, with its unit; curves of one `y_name` share a plot.
        x: Where it was measured, in the report's `x_name`.
        y: The values there.
        note: What a reader must know to compare it fairly.
    """

    name: str
    y_name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """Scores of a system.

    Attributes:
        system: The system's name.
        title: One line saying what was evaluated on what.
        x_name: The sweep's axis, with its unit.
        curves: One a method.
        facts: Single numbers by name; the name carries the unit.
    """

    system: str
    title: str
    x_name: str
    curves: tuple[Curve, ...]
    facts: dict[str, float]
