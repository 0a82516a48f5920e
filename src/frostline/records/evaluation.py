"""How good a trained system is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One quantity over another.

    Attributes:
        name: What the legend says.
        x: Where it was measured, in the report's `x_name`.
        y: The values there, in the report's `y_name`.
        note: What a reader must know to compare it fairly.
    """

    name: str
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
        y_name: The score, with its unit.
        curves: One a method.
        facts: Single numbers by name; the name carries the unit.
    """

    system: str
    title: str
    x_name: str
    y_name: str
    curves: tuple[Curve, ...]
    facts: dict[str, float]
