"""Find a plan: measure each kind of treatment once, propose, and believe only a run of the planned step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from frostline.errors import BudgetError, PlanError
from frostline.memory import Workload
from frostline.planner.profile import profile
from frostline.planner.purity import impure_units, mixing_units
from frostline.planner.running import Run, Runner
from frostline.planner.solving import KEEP, Choices, cheapest, smallest
from frostline.planner.treatments import WAYS, Facts
from frostline.planner.units import find_units
from frostline.records import Plan, ProofClass, Treatment
from frostline.tracing import build_fake, fake_tensors
from frostline.units import format_bytes, parse_bytes

Budget = int | str
Allowed = Literal["exact", "rounding", "bounded"]
SMALLEST = "smallest"
_ATTEMPTS = 12
_CLASSES: tuple[ProofClass, ...] = ("EXACT", "ROUNDING", "BOUNDED")


def plan(
    step: Callable[[], object],
    model: nn.Module,
    *,
    budget: Budget,
    optimizers: Iterable[torch.optim.Optimizer] = (),
    inputs: object = (),
    units: Sequence[str] | None = None,
    allow: Iterable[Allowed] = ("exact",),
) -> Plan:
    """Bring a training step under a memory budget at the least extra work, with the same gradients.

    The step is run several times, as it is and with each kind of treatment on all units, on fake tensors: nothing is
    computed, and neither model nor optimizers change. What those runs show goes into a linear program; the step it
    proposes is run again, and the proposal is tightened until that run fits. The predicted peak is that run's. Before
    anything is recomputed, each unit is called twice on its real arguments: one whose forward changes a buffer, an
    argument or an attribute, or gives something else the second time, is left as it is, and the plan's notes say so.

    Args:
        step: One whole training step, which can be repeated; see `Workload`.
        model: Its submodules are treated, later, by `apply_`.
        budget: The peak to stay under, in bytes or as ``"6GiB"``: all that is alive, weights included. ``"smallest"``
            asks for the smallest peak there is.
        optimizers: All that the step steps.
        inputs: Any pytree of the tensors the step is given.
        units: Qualified names of the modules to decide about; the model's repeated blocks by default.
        allow: Classes of gradients that treatments may have.

    Returns:
        The plan. Nothing is installed yet.

    Raises:
        BudgetError: No plan fits; says the smallest peak, and what holds memory there.
        PlanError: A unit that is not in the model, or a size that is none.
    """
    workload = Workload(step=step, model=model, optimizers=tuple(optimizers), inputs=inputs)
    return plan_workload(workload, budget=budget, units=units, allow=allow)


def plan_workload(
    workload: Workload,
    *,
    budget: Budget,
    units: Sequence[str] | None = None,
    allow: Iterable[Allowed] = ("exact",),
) -> Plan:
    """`plan` for a workload; one that was built on fake tensors is planned inside their mode."""
    limit = _limit_of(budget)
    modules = _modules(workload.model, find_units(workload.model) if units is None else units)
    allowed = _allowed(allow)
    impure = impure_units(workload, modules)
    mixing = mixing_units(workload, modules) if "ROUNDING" in allowed else {}
    with Runner(workload, modules).opened() as runner:
        search = _Search(runner, modules, impure, mixing, allowed)
        search.look(limit)
        found = search.smallest() if limit == 0 else search.fitting(limit)
    notes = (*runner.notes, *search.notes)
    plain = search.plain
    treatments = search.treatments(found.kinds)
    return Plan(
        treatments=treatments,
        budget_bytes=limit,
        predicted_peak_bytes=found.run.peak_bytes,
        resident_bytes=plain.live[0],
        baseline_peak_bytes=plain.peak_bytes,
        predicted_cost=found.run.work / max(1, plain.work) - 1,
        proof_class=_weakest(treatments),
        method=runner.method,
        peak_at=found.run.report().peak_at,
        notes=notes,
    )


def plan_blueprint(
    build_model: Callable[[], nn.Module],
    build_workload: Callable[[Any], Workload],
    *,
    budget: Budget,
    allow: Iterable[Allowed] = ("exact",),
) -> Plan:
    """`plan` for a model of any size in no memory: it is built without values, as `estimate` does.

    Whether a unit may run twice is then asked of shapes, versions and attributes, not of values.

    Args:
        build_model: Makes the model.
        build_workload: Makes inputs, optimizers and step for it; the plan's names are those of its workload's model.
        budget: As of `plan`.
        allow: As of `plan`.
    """
    mode = fake_tensors()
    model = build_fake(build_model, mode)
    with mode:
        return plan_workload(build_workload(model), budget=budget, allow=allow)


@dataclass(frozen=True)
class _Found:
    """A choice, and the run that showed what it needs."""

    kinds: tuple[str, ...]
    run: Run


@dataclass
class _Search:
    """One search over one workload."""

    runner: Runner
    modules: dict[str, nn.Module]
    impure: dict[str, str]
    mixing: dict[str, str]
    allowed: tuple[ProofClass, ...]
    notes: list[str] = field(default_factory=list)
    _tried: dict[tuple[str, ...], Run] = field(default_factory=dict)

    def look(self, limit: int) -> None:
        """Run the plain step, and each kind of treatment on all units that can have it."""
        self.plain = self.runner.run()
        nothing = (KEEP,) * len(self.modules)
        self._tried[nothing] = self.plain
        profiles = {KEEP: profile(self.plain)}
        kinds = [[KEEP] for _ in self.modules]
        self.choices = Choices(profiles, tuple(map(tuple, kinds)), self.plain.work)
        if limit and self.plain.peak_bytes <= limit:
            return  # nothing to do, and nothing to find out
        called = {unit for kind, unit, _ in profiles[KEEP].shape if kind == "forward"}
        facts = self._facts(called, {unit for unit, _ in profiles[KEEP].kept})
        for name, way in WAYS.items():
            if way.proof_class not in self.allowed:
                continue
            takers = [unit for unit in facts if not way.refuses(facts[unit]) and set(way.parts) <= set(kinds[unit])]
            choice = tuple(name if unit in takers else KEEP for unit in range(len(kinds)))
            try:
                shown = profile(self._run(choice)) if takers else profiles[KEEP]
            except Exception as error:  # of the treatment: the plain step has run
                self.notes.append(f"{name} was not considered: {type(error).__name__}: {error}".partition("\n")[0])
                continue
            if shown.shape != profiles[KEEP].shape:
                self.notes.append(f"{name} changes the order of the step and was not considered")
            elif takers:
                profiles[name] = shown
                for unit in takers:
                    same = (profiles[kind].alike(shown, unit) for kind in kinds[unit])
                    if not any(same):
                        kinds[unit].append(name)
        self.choices = Choices(profiles, tuple(map(tuple, kinds)), self.plain.work)

    def fitting(self, limit: int) -> _Found:
        """The least work whose run stays under a limit."""
        target = float(limit)
        for _ in range(_ATTEMPTS):
            kinds = cheapest(self.choices, target)
            if kinds is None:
                break
            run = self._run(kinds)
            if run.peak_bytes <= limit:
                return _Found(kinds, run)
            target -= max(1, run.peak_bytes - limit)
        found = self.smallest()
        if found.run.peak_bytes > limit:
            raise self._refusal(limit, found)
        return found

    def smallest(self) -> _Found:
        """The smallest peak that a run has shown, and among the choices tried the least work for it."""
        self._run(smallest(self.choices))
        peak = min(run.peak_bytes for run in self._tried.values())
        for slack in (1.0, 1.001):
            kinds = cheapest(self.choices, peak * slack)
            if kinds is not None:
                self._run(kinds)
        kinds, run = min(self._tried.items(), key=lambda item: (item[1].peak_bytes, item[1].work))
        return _Found(kinds, run)

    def treatments(self, kinds: tuple[str, ...]) -> tuple[Treatment, ...]:
        """A choice as a plan says it."""
        return tuple(
            Treatment(unit=unit, kind=kind, arguments=dict(WAYS[kind].arguments or {}) if kind != KEEP else {})
            for unit, kind in zip(self.modules, kinds, strict=True)
        )

    def _run(self, kinds: tuple[str, ...]) -> Run:
        if kinds not in self._tried:
            chosen = tuple(treatment for treatment in self.treatments(kinds) if treatment.kind != KEEP)
            self._tried[kinds] = self.runner.run(chosen)
        return self._tried[kinds]

    def _facts(self, called: set[int], trained: set[int]) -> dict[int, Facts]:
        """What is known of the units that the step calls; what keeps the others out goes into the notes."""
        names = list(self.modules)
        reasons = {name: self.impure[name] for unit, name in enumerate(names) if unit in called and name in self.impure}
        told = {name: reason for name, reason in reasons.items() if names.index(name) in trained}
        for reason in dict.fromkeys(told.values()):
            members = [name for name, why in told.items() if why == reason]
            self.notes.append(f"never recomputed: {_listed(members)}: {reason}")
        idle = [name for unit, name in enumerate(names) if unit not in called]
        if idle:
            self.notes.append(f"not called in the step: {_listed(idle)}")
        return {
            unit: Facts(self.modules[name], unit in trained, reasons.get(name, ""), self.mixing.get(name, ""))
            for unit, name in enumerate(names)
            if unit in called
        }

    def _refusal(self, limit: int, found: _Found) -> BudgetError:
        report = found.run.report()
        smallest_bytes = found.run.peak_bytes
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
        ]
        return BudgetError("\n".join(text), smallest_bytes=smallest_bytes, do=_advice(report.resident_bytes, limit))


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


def _limit_of(budget: Budget) -> int:
    if budget == SMALLEST:
        return 0
    limit = parse_bytes(budget) if isinstance(budget, str) else int(budget)
    if limit <= 0:
        raise PlanError(f"the budget is {budget!r}", do="give bytes, a size such as '6GiB', or 'smallest'")
    return limit


def _allowed(allow: Iterable[Any]) -> tuple[ProofClass, ...]:
    asked = tuple(allow) if not isinstance(allow, str) else (allow,)
    known = {kind.lower(): kind for kind in _CLASSES}
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise PlanError(f"no class of gradients is called {unknown[0]!r}", do=f"allow some of {', '.join(known)}")
    return tuple(known[name] for name in asked)


def _modules(model: nn.Module, units: Sequence[str]) -> dict[str, nn.Module]:
    modules = dict(model.named_modules())
    for unit in units:
        if unit not in modules:
            raise PlanError(f"no module of the model is called {unit!r}", do="name modules as `named_modules` does")
    for outer in units:
        for inner in units:
            if inner != outer and modules[inner] in set(modules[outer].modules()):
                raise PlanError(f"{inner!r} lies inside {outer!r}", do="name units that lie beside each other")
    return {name: modules[name] for name in modules if name in set(units)}


def _weakest(treatments: Iterable[Treatment]) -> ProofClass:
    classes = [WAYS[treatment.kind].proof_class for treatment in treatments if treatment.kind != KEEP]
    return max(classes, key=_CLASSES.index, default="EXACT")
