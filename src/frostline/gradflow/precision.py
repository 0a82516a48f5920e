"""FL401-FL403: gradient scalers used out of order, and gradients that are not finite."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from frostline.gradflow.blame import find_vanishing
from frostline.gradflow.names import describe
from frostline.gradflow.rule import Rule, place, place_of, write
from frostline.gradflow.step import Step
from frostline.records import Finding, Place
from frostline.where import Line

if TYPE_CHECKING:
    from frostline.gradflow.session import Session


class Precision(Rule):
    """Follows scalers from scale to update, and looks where gradients stop being finite."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._clipped: set[Line | None] = set()
        self._updated: dict[tuple[Line | None, ...], int] = {}
        self._broken: dict[tuple[Place, ...], set[int]] = defaultdict(set)
        self._loss: dict[tuple[Place, ...], float] = {}
        self._num_broken: dict[int, int] = defaultdict(int)
        self._num_finite: dict[int, int] = defaultdict(int)
        self._scaled = False

    def observe(self, step: Step) -> None:
        """Look at one step's order, and at its gradients."""
        self._clipped |= {clipping.line for clipping in step.clippings if clipping.scaled}
        for scaler in {scaler for scaler, _ in step.scaler_updates}:
            lines = [line for other, line in step.scaler_updates if other == scaler]
            if len(lines) > 1:
                self._updated[tuple(dict.fromkeys(lines))] = len(lines)
        for update in step.updates:
            for number, state in update.gradients.items():
                if state == "nonfinite":
                    self._num_broken[number] += 1
                    self._scaled |= update.use.scaled
                    self._look(number, step)
                elif state == "finite":
                    self._num_finite[number] += 1

    def _look(self, number: int, step: Step) -> None:
        backward = next((b for b in reversed(step.backwards) if b.arrived >> number & 1), None)
        if backward is None:
            return
        found = find_vanishing(backward, [root.event for root in backward.roots], number, "nonfinite")
        places = tuple(p for event in found.events[:2] if (p := place_of("breaks", event)))
        self._broken[places].add(number)
        value = self.session.loss_values.get(backward)
        self._loss.setdefault(places, float("nan") if value is None else _number(value))

    def findings(self) -> Iterator[Finding]:
        """Scalers out of order, and gradients that are not finite though the loss is."""
        for line in self._clipped:
            yield write("FL401", "gradients are clipped while they are still scaled", [place("clipped", line)])
        for lines, number in self._updated.items():
            places = [place("updated", line, "scaler.update()") for line in lines]
            yield write("FL402", f"the gradient scaler is updated {number} times in one step", places)
        for where, numbers in self._broken.items():
            once = [n for n in numbers if self._num_finite[n] or self._num_broken[n] < 3]
            if self._scaled and once:
                continue  # a scaler begins with a scale that is too large, on purpose
            names = self.leaf_names(numbers)
            loss = self._loss[where]
            evidence = f"the loss is {loss:.4g}" if loss == loss else "the loss is not finite either"
            yield write(
                "FL403",
                f"{describe(names)} gets a gradient that is not finite",
                where,
                evidence=evidence,
                parameters=names,
            )


def _number(value: Tensor) -> float:
    return float(value.real if value.is_complex() else value)
