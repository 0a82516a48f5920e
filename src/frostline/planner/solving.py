"""Which unit gets which treatment: a mixed-integer linear program over the segments of a step.

A segment's bytes are those of its owner under the owner's treatment, and what every other unit holds under its own. The
result is a proposal: only a run of the step it proposes says what that step needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

from frostline.planner.profile import Profile, Segment
from frostline.units import MIB

KEEP = "keep"
_TREATED = 1e-6
"""Price of any treatment beside its work, as a share of the step: none without a use."""
_SECONDS = 20


@dataclass(frozen=True)
class Choices:
    """What can be chosen.

    Attributes:
        profiles: By kind, each from a run with that kind on every unit that can have it.
        kinds: For each unit, the kinds it can have, ``keep`` first.
        total_work: Of the plain step.
    """

    profiles: dict[str, Profile]
    kinds: tuple[tuple[str, ...], ...]
    total_work: int

    def cost(self, unit: int, kind: str) -> float:
        """Extra work of a unit under a kind, as a share of the plain step's."""
        if kind == KEEP:
            return 0.0
        extra = self.profiles[kind].work[unit] - self.profiles[KEEP].work[unit]
        return max(0.0, extra / max(1, self.total_work)) + _TREATED


class Program:
    """The rows of the program: one choice a unit, and one peak a segment, in MiB. The last column is the peak."""

    def __init__(self, choices: Choices) -> None:
        self._columns = [(unit, kind) for unit, kinds in enumerate(choices.kinds) for kind in kinds]
        self._place = {column: place for place, column in enumerate(self._columns)}
        self._choices = choices
        plain = choices.profiles[KEEP]
        rows = [self._segment_row(number, segment) for number, segment in enumerate(plain.segments)]
        self._rows = np.array([row for row, _ in rows])
        self._limits = np.array([-constant for _, constant in rows])
        self._costs = np.array([*(choices.cost(unit, kind) for unit, kind in self._columns), 0.0])

    def cheapest(self, budget_bytes: float) -> tuple[str, ...] | None:
        """A kind for each unit, with the least work under a budget; None where the program finds none."""
        return self._solve(self._costs, budget_bytes / MIB)

    def smallest(self) -> tuple[str, ...]:
        """A kind for each unit, with the smallest peak, and among those little work."""
        only_peak = np.array([0.0] * len(self._columns) + [1.0])
        chosen = self._solve(self._costs * 1e-3 + only_peak, math.inf)
        assert chosen is not None, "without a limit there is always a choice"
        return chosen

    def cost(self, kinds: tuple[str, ...]) -> float:
        """Extra work of a choice, as a share of the plain step's."""
        return float(self._costs @ self._chosen(kinds))

    def peak_bytes(self, kinds: tuple[str, ...]) -> float:
        """The peak of a choice, as the program sees it."""
        return float((self._rows @ self._chosen(kinds) - self._limits).max()) * MIB

    def _chosen(self, kinds: tuple[str, ...]) -> NDArray[np.float64]:
        columns = np.zeros(len(self._columns) + 1)
        columns[[self._place[column] for column in enumerate(kinds)]] = 1.0
        return columns

    def _solve(self, costs: NDArray[np.float64], limit: float) -> tuple[str, ...] | None:
        num_units, num_columns = len(self._choices.kinds), len(self._columns) + 1
        one = np.zeros((num_units, num_columns))
        for place, (unit, _) in enumerate(self._columns):
            one[unit, place] = 1
        constraints = [LinearConstraint(self._rows, -np.inf, self._limits)]
        if num_units:
            constraints.append(LinearConstraint(one, 1, 1))
        result = milp(
            costs,
            constraints=constraints,
            integrality=np.array([1] * len(self._columns) + [0]),
            bounds=Bounds(np.zeros(num_columns), np.array([1.0] * len(self._columns) + [limit])),
            options={"time_limit": _SECONDS, "mip_rel_gap": 1e-3},
        )
        if result.x is None:
            return None
        values = {column: result.x[place] for place, column in enumerate(self._columns)}
        return tuple(
            max(kinds, key=lambda kind: float(values[unit, kind])) for unit, kinds in enumerate(self._choices.kinds)
        )

    def _segment_row(self, number: int, plain: Segment) -> tuple[NDArray[np.float64], float]:
        """Coefficients, and the bytes that no choice changes."""
        profiles, kinds = self._choices.profiles, self._choices.kinds
        row = np.zeros(len(self._columns) + 1)
        row[-1] = -1.0
        constant = 0.0
        if plain.owner < 0:
            constant = plain.peak_bytes - profiles[KEEP].held(plain)
        else:
            for kind in kinds[plain.owner]:
                own = profiles[kind].segments[number]
                row[self._place[plain.owner, kind]] += (own.peak_bytes - profiles[kind].held(own)) / MIB
        for unit, call in plain.holding:
            for kind in kinds[unit]:
                row[self._place[unit, kind]] += profiles[kind].kept[unit, call] / MIB
        return row, constant / MIB
