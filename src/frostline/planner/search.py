"""Plan a step: what may be done to which unit, and which of it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import nn

from frostline.errors import PlanError
from frostline.memory import Workload
from frostline.planner.exploration import Exploration, Found
from frostline.planner.purity import impure_units, mixing_units
from frostline.planner.running import Runner
from frostline.planner.solving import KEEP
from frostline.planner.treatments import WAYS, lean_layers
from frostline.planner.units import find_units
from frostline.records import Plan, ProofClass, Treatment
from frostline.regions import optimizers_of
from frostline.tracing import build_fake, fake_tensors
from frostline.units import parse_bytes

Budget = int | str
Allowed = Literal["exact", "rounding", "bounded"]
SMALLEST = "smallest"
_CLASSES: tuple[ProofClass, ...] = ("EXACT", "ROUNDING", "BOUNDED")


def plan(
    step: Callable[[], object],
    model: nn.Module,
    *,
    budget: Budget,
    optimizers: Iterable[torch.optim.Optimizer] | torch.optim.Optimizer = (),
    inputs: object = (),
    units: Sequence[str] | None = None,
    allow: Iterable[Allowed] = ("exact",),
) -> Plan:
    """Bring a training step under a memory budget at the least extra work, with the same gradients.

    The step is run several times, as it is and with each kind of treatment on all units, on fake tensors: nothing is
    computed, and neither model nor optimizers change. What those runs show goes into a linear program; the step it
    proposes is run again, and the proposal is tightened until that run fits. Where the program's own peaks are off,
    changes of one or two units are tried as well. The predicted peak is always that of a run.

    Before anything is recomputed, each unit is called twice on its real arguments: one whose forward changes a buffer,
    an argument or an attribute, or gives something else the second time, is left as it is, and the plan's notes say so.

    Args:
        step: One whole training step, which can be repeated; see `Workload`.
        model: Its submodules are treated, later, by `apply_`.
        budget: The peak to stay under, in bytes or as ``"6GiB"``: all that is alive, weights included. ``"smallest"``
            asks for the smallest peak there is.
        optimizers: All that the step steps.
        inputs: Any pytree of the tensors the step is given.
        units: Qualified names of the modules to decide about; by default the model's repeated blocks, and beside them
            the single frozen layers that have a lean form.
        allow: Classes of gradients that treatments may have.

    Returns:
        The plan. Nothing is installed yet.

    Raises:
        BudgetError: No plan fits; says the smallest peak, and what holds memory there.
        PlanError: A unit that is not in the model, or a size that is none.
    """
    workload = Workload(step=step, model=model, optimizers=optimizers_of(optimizers), inputs=inputs)
    return plan_workload(workload, budget=budget, units=units, allow=allow)


def plan_workload(
    workload: Workload,
    *,
    budget: Budget,
    units: Sequence[str] | None = None,
    allow: Iterable[Allowed] = ("exact",),
) -> Plan:
    """`plan` for a workload; one that was built on fake tensors is planned inside their mode."""
    _limit_of(budget)
    return Planner(workload, units=units, allow=allow).plan(budget)


class Planner:
    """Plans one workload for one budget after another; its units are found and tested once.

    Args:
        workload: What to plan.
        units: As of `plan`.
        allow: As of `plan`.

    Raises:
        PlanError: A unit that is not in the model, or a class of gradients that is none.
    """

    def __init__(
        self, workload: Workload, *, units: Sequence[str] | None = None, allow: Iterable[Allowed] = ("exact",)
    ) -> None:
        self._workload, self._allowed = workload, _allowed(allow)
        self._blocks = find_units(workload.model) if units is None else _named(units)
        layers = lean_layers(workload.model, beside=self._blocks) if units is None else ()
        self._layers = frozenset(layers)
        self._modules = _modules(workload.model, (*self._blocks, *layers))
        tested = {name: module for name, module in self._modules.items() if name not in self._layers}
        self._impure = impure_units(workload, tested)
        self._mixing = mixing_units(workload, tested) if "ROUNDING" in self._allowed else {}

    def plan(self, budget: Budget) -> Plan:
        """`plan` for a budget.

        Raises:
            BudgetError: No plan fits.
            PlanError: A size that is none.
        """
        return self.plans([budget])[0]

    def plans(self, budgets: Iterable[Budget]) -> tuple[Plan, ...]:
        """One for each of several budgets; what a run has shown serves all of them.

        Raises:
            BudgetError: No plan fits one of them.
            PlanError: A size that is none, or there is no budget.
        """
        limits = [_limit_of(budget) for budget in budgets]
        if not limits:
            raise PlanError("there is no budget to plan for", do="give one or more")
        with Runner(self._workload, self._modules).opened() as runner:
            exploration = Exploration(runner, self._modules, self._impure, self._mixing, self._layers, self._allowed)
            exploration.look(min(limits))
            found = [exploration.fitting(limit) if limit else exploration.smallest() for limit in limits]
        return tuple(self._plan(exploration, *each) for each in zip(limits, found, strict=True))

    def _plan(self, exploration: Exploration, limit: int, found: Found) -> Plan:
        plain, runner = exploration.plain, exploration.runner
        everything = exploration.treatments(found.kinds)
        treatments = tuple(each for each in everything if each.kind != KEEP or each.unit not in self._layers)
        return Plan(
            treatments=treatments,
            budget_bytes=limit,
            predicted_peak_bytes=found.peak_bytes,
            resident_bytes=plain.live[0],
            baseline_peak_bytes=plain.peak_bytes,
            predicted_cost=found.work / max(1, plain.work) - 1,
            proof_class=_weakest(treatments),
            method=runner.method,
            peak_at=found.peak_at,
            notes=(*runner.notes, *exploration.notes),
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


def _limit_of(budget: Budget) -> int:
    if budget == SMALLEST:
        return 0
    limit = parse_bytes(budget) if isinstance(budget, str) else budget
    if not isinstance(limit, int) or limit <= 0:
        raise PlanError(f"the budget is {budget!r}", do="give bytes, a size such as '6GiB', or 'smallest'")
    return limit


def _named(units: Sequence[str] | str) -> tuple[str, ...]:
    return (units,) if isinstance(units, str) else tuple(units)


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
