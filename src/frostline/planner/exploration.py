"""Find a plan: measure each kind of treatment once, propose, and believe only a run of the planned step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations, product

from torch import nn

from frostline.errors import BudgetError
from frostline.planner.profile import Profile, profile
from frostline.planner.running import Run, Runner
from frostline.planner.solving import KEEP, Choices, Program
from frostline.planner.treatments import WAYS, Facts
from frostline.records import ProofClass, Treatment
from frostline.units import format_bytes

Kinds = tuple[str, ...]
_ATTEMPTS = 12
_MAX_CHANGES = 32
_CHEAPER = 1e-5
"""A share of the step's work that is worth a run."""


@dataclass(frozen=True)
class Found:
    """A choice, and what a run of it needed.

    Attributes:
        kinds: For each unit.
        peak_bytes: Of the run.
        peak_at: Where in the run it was reached.
        work: Of the run.
    """

    kinds: Kinds
    peak_bytes: int
    peak_at: str
    work: int


def _found(kinds: Kinds, run: Run) -> Found:
    return Found(kinds, run.peak_bytes, run.peak_at, run.work)


@dataclass
class Exploration:
    """One search over one workload.

    Attributes:
        runner: Runs its step.
        modules: The units, by name.
        impure: Units that must not be run twice, each with the reason.
        mixing: Units whose samples cannot be taken apart, each with the reason.
        layers: Units that are single layers: they are made lean or left.
        allowed: Classes of gradients that treatments may have.
        notes: What was left out, and why.
        plain: The step without any treatment, after `look`.
        kinds: For each unit, what can be chosen, after `look`.
    """

    runner: Runner
    modules: dict[str, nn.Module]
    impure: dict[str, str]
    mixing: dict[str, str]
    layers: frozenset[str]
    allowed: tuple[ProofClass, ...]
    notes: list[str] = field(default_factory=list)
    _tried: dict[Kinds, Found] = field(default_factory=dict)

    def look(self, limit: int) -> None:
        """Run the plain step, and each kind of treatment on all units that can have it."""
        self.plain = self.runner.run()
        nothing = (KEEP,) * len(self.modules)
        self._tried[nothing] = _found(nothing, self.plain)
        profiles = {KEEP: profile(self.plain)}
        kinds = [[KEEP] for _ in self.modules]
        if not limit or self.plain.peak_bytes > limit:
            called = {unit for kind, unit, _ in profiles[KEEP].shape if kind == "forward"}
            facts = self._facts(called, {unit for unit, _ in profiles[KEEP].kept})
            for name, way in WAYS.items():
                if way.proof_class in self.allowed:
                    self._look_at(name, facts, profiles, kinds)
        self.kinds = tuple(map(tuple, kinds))
        self._program = Program(Choices(profiles, self.kinds, self.plain.work))

    def fitting(self, limit: int) -> Found:
        """The least work whose run stays under a limit.

        Raises:
            BudgetError: There is none.
        """
        target = float(limit)
        for _ in range(_ATTEMPTS):
            kinds = self._program.cheapest(target)
            over = 0 if kinds is None else self.run(kinds).peak_bytes - limit
            if over <= 0:
                break
            target -= over
        if not any(found.peak_bytes <= limit for found in self._tried.values()):
            smallest = self.smallest()
            if smallest.peak_bytes > limit:
                raise self._refusal(limit, smallest)
        fitting = [found for found in self._tried.values() if found.peak_bytes <= limit]
        return self._improved(min(fitting, key=lambda found: found.work), limit)

    def smallest(self) -> Found:
        """The smallest peak that a run has shown, and among the choices tried the least work for it."""
        self.run(self._program.smallest())
        found = self._improved(min(self._tried.values(), key=_by_peak), 0)
        for slack in (1.0, 1.001):
            kinds = self._program.cheapest(found.peak_bytes * slack)
            if kinds is not None:
                self.run(kinds)
        return min(self._tried.values(), key=_by_peak)

    def treatments(self, kinds: Kinds) -> tuple[Treatment, ...]:
        """A choice as a plan says it."""
        return tuple(
            Treatment(unit=unit, kind=kind, arguments=dict(WAYS[kind].arguments or {}) if kind != KEEP else {})
            for unit, kind in zip(self.modules, kinds, strict=True)
        )

    def _chosen(self, kinds: Kinds) -> tuple[Treatment, ...]:
        return tuple(treatment for treatment in self.treatments(kinds) if treatment.kind != KEEP)

    def run(self, kinds: Kinds) -> Found:
        """Run a choice, once."""
        if kinds not in self._tried:
            self._tried[kinds] = _found(kinds, self.runner.run(self._chosen(kinds)))
        return self._tried[kinds]

    def _look_at(
        self, name: str, facts: dict[int, Facts], profiles: dict[str, Profile], kinds: list[list[str]]
    ) -> None:
        """Run a kind of treatment on all units that can have it; where it has an effect, it can be chosen."""
        way, plain = WAYS[name], profiles[KEEP]
        takers = [unit for unit in facts if not way.refuses(facts[unit]) and set(way.parts) <= set(kinds[unit])]
        if not takers:
            return
        choice = tuple(name if unit in takers else KEEP for unit in range(len(kinds)))
        try:
            run = self.runner.run(self._chosen(choice))
        except Exception as error:  # of the treatment: the plain step has run
            self.notes.append(f"{name} was not considered: {type(error).__name__}: {error}".partition("\n")[0])
            return
        shown = profile(run)
        if shown.shape != plain.shape:
            self.notes.append(f"{name} changes the order of the step and was not considered")
            return
        self._tried[choice] = _found(choice, run)
        profiles[name] = shown
        for unit in takers:
            if not any(profiles[kind].alike(shown, unit) for kind in kinds[unit]):
                kinds[unit].append(name)

    def _improved(self, found: Found, limit: int) -> Found:
        """Change one or two units at a time for less work within a limit, or with none for a smaller peak.

        What neighbours share is held by one of them, and by which depends on both: there the program's peaks are too
        high. By how much they may be is taken from the runs so far; where they are right, nothing is left to try.
        """
        self.run(tuple(kinds[(unit + 1) % len(kinds)] for unit, kinds in enumerate(self.kinds)))
        num_left = _MAX_CHANGES
        while True:
            for kinds in self._changes(found, limit):
                if not num_left:
                    return found
                num_left -= 1
                other = self.run(kinds)
                if other.peak_bytes <= limit or (not limit and other.peak_bytes < found.peak_bytes):
                    found = other
                    break
            else:
                return found

    def _changes(self, found: Found, limit: int) -> list[Kinds]:
        """Untried neighbours of a choice that may be better, the most promising first; one of those that look alike."""
        program, at_most = self._program, (1 + 2 * self._excess()) * (limit or found.peak_bytes - 1)
        cost = program.cost(found.kinds) - _CHEAPER
        better: dict[tuple[float, float], Kinds] = {}
        for kinds in self._neighbours(found.kinds):
            of_kinds = program.cost(kinds), program.peak_bytes(kinds)
            if kinds not in self._tried and of_kinds[1] <= at_most and not (limit and of_kinds[0] >= cost):
                better.setdefault(of_kinds if limit else of_kinds[::-1], kinds)
        return [better[key] for key in sorted(better)]

    def _excess(self) -> float:
        """By how much the program's peaks were above those of runs, at most, as a share."""
        known = (found for found in self._tried.values() if self._can_be_chosen(found.kinds))
        return max(0.0, *(self._program.peak_bytes(found.kinds) / found.peak_bytes - 1 for found in known))

    def _can_be_chosen(self, kinds: Kinds) -> bool:
        return all(kind in others for kind, others in zip(kinds, self.kinds, strict=True))

    def _neighbours(self, kinds: Kinds) -> Iterator[Kinds]:
        for num_changes in (1, 2):
            for units in combinations(range(len(kinds)), num_changes):
                for others in product(*([kind for kind in self.kinds[unit] if kind != kinds[unit]] for unit in units)):
                    changed = dict(zip(units, others, strict=True))
                    yield tuple(changed.get(unit, kind) for unit, kind in enumerate(kinds))

    def _facts(self, called: set[int], trained: set[int]) -> dict[int, Facts]:
        """What is known of the units that the step calls; what keeps the others out goes into the notes."""
        names = list(self.modules)
        reasons = {name: self.impure[name] for unit, name in enumerate(names) if unit in called and name in self.impure}
        told = {name: reason for name, reason in reasons.items() if names.index(name) in trained}
        for reason in dict.fromkeys(told.values()):
            members = [name for name, why in told.items() if why == reason]
            self.notes.append(f"never recomputed: {_listed(members)}: {reason}")
        idle = [name for unit, name in enumerate(names) if unit not in called and name not in self.layers]
        if idle:
            self.notes.append(f"not called in the step: {_listed(idle)}")
        return {
            unit: Facts(self.modules[name], unit in trained, self._impure(name), self.mixing.get(name, ""))
            for unit, name in enumerate(names)
            if unit in called
        }

    def _impure(self, name: str) -> str:
        return "it is a single layer" if name in self.layers else self.impure.get(name, "")

    def _refusal(self, limit: int, found: Found) -> BudgetError:
        report, smallest_bytes = self.runner.run(self._chosen(found.kinds)).report(), found.peak_bytes
        held = [f"{name} {format_bytes(num)}" for name, num in _largest(report.by_category)]
        places = [f"{name} {format_bytes(num)}" for name, num in _largest(report.by_module)]
        lines = [f"{name} {format_bytes(num)}" for name, num in _largest(report.by_line) if name]
        text = [
            f"no plan fits into {format_bytes(limit)}: the smallest peak of this step is"
            f" {format_bytes(smallest_bytes)} ({smallest_bytes} bytes), and {format_bytes(self.plain.peak_bytes)}"
            " without a plan",
            f"  held   {', '.join(held)}",
            f"  made   {', '.join(places) or 'nothing: it was all there before the step'}",
            *([f"  lines  {', '.join(lines)}"] if lines else []),
            f"  at     {report.peak_at}",
            *(f"  note   {note}" for note in self.notes),
        ]
        return BudgetError("\n".join(text), smallest_bytes=smallest_bytes, do=_advice(report.resident_bytes, limit))


def _by_peak(found: Found) -> tuple[int, int]:
    return found.peak_bytes, found.work


def _advice(resident_bytes: int, limit: int) -> str:
    if resident_bytes > limit:
        return (
            f"{format_bytes(resident_bytes)} are there before the step: freeze more, take a lower precision for frozen "
            "weights, or an optimizer with less state"
        )
    return "give the budget that is named, or take a smaller batch: `largest_batch` finds it"


def _largest(table: dict[str, int]) -> list[tuple[str, int]]:
    return [item for item in sorted(table.items(), key=lambda item: -item[1])[:3] if item[1]]


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]}, {names[1]} and {len(names) - 2} more"
