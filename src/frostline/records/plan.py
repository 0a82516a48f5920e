"""What is done to which part of a model, so that its training step fits into memory."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from frostline.records.proof import ProofClass
from frostline.units import format_bytes


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """What is done to one module.

    Attributes:
        unit: The module's qualified name.
        kind: A name in the planner's table, such as ``checkpoint``; ``keep`` leaves the module as it is.
        arguments: Whole numbers that the kind takes, such as ``chunk_size``.
    """

    unit: str
    kind: str
    arguments: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        given = ", ".join(f"{name}={value}" for name, value in self.arguments.items())
        return f"{self.unit}: {self.kind}{f' ({given})' if given else ''}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The treatments that bring one training step under a budget.

    Attributes:
        treatments: One a module, in the model's order; a module that is not named is left as it is.
        budget_bytes: What the step's peak may reach; 0 where the smallest peak was asked for.
        predicted_peak_bytes: The peak of the planned step, from a run of that step.
        resident_bytes: Bytes alive before the step; no treatment changes them.
        baseline_peak_bytes: The peak of the step without a plan, counted in the same way.
        predicted_cost: Work of the planned step over the plain step's, minus 1. Work is floating-point operations, and
            16 for each element that an operator writes.
        proof_class: The weakest class of gradients among the treatments.
        method: ``predicted`` from runs on fake tensors, ``measured`` from real ones.
        peak_at: The phase, module and operator that reaches the planned step's peak.
        notes: Which modules were left out, and why; what the numbers do not count.
    """

    treatments: tuple[Treatment, ...]
    budget_bytes: int
    predicted_peak_bytes: int
    resident_bytes: int
    baseline_peak_bytes: int
    predicted_cost: float
    proof_class: ProofClass
    method: Literal["predicted", "measured"]
    peak_at: str = ""
    notes: tuple[str, ...] = ()

    @property
    def treated(self) -> tuple[Treatment, ...]:
        """The treatments that change something."""
        return tuple(treatment for treatment in self.treatments if treatment.kind != "keep")

    def __str__(self) -> str:
        budget = f"budget {format_bytes(self.budget_bytes)}" if self.budget_bytes else "smallest peak"
        lines = [
            f"plan for {budget}: {self.method} peak {format_bytes(self.predicted_peak_bytes)}"
            f" instead of {format_bytes(self.baseline_peak_bytes)},"
            f" {self.predicted_cost:+.1%} work, {self.proof_class}"
        ]
        lines += [f"  {text}" for text, _ in self.grouped()] or ["  nothing to do"]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def grouped(self) -> tuple[tuple[str, int], ...]:
        """The treatments with neighbours of one kind in one text, and how many modules each text is about."""
        groups: list[tuple[str, list[Treatment]]] = []
        for treatment in self.treatments:
            key = f"{re.sub(r'[0-9]+', '#', treatment.unit)} {str(treatment).removeprefix(treatment.unit)}"
            if groups and groups[-1][0] == key:
                groups[-1][1].append(treatment)
            else:
                groups.append((key, [treatment]))
        return tuple((_range(members), len(members)) for _, members in groups if members[0].kind != "keep")


def _range(members: list[Treatment]) -> str:
    first, last = members[0], members[-1]
    what = str(first).removeprefix(first.unit)
    return str(first) if first is last else f"{first.unit} to {last.unit}{what}"
