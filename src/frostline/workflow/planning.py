"""Plan the training step of a system, prove a plan, and put one in force for a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from frostline.config import RunConfig
from frostline.errors import BudgetError, ConfigError, FrostlineError
from frostline.memory import Workload
from frostline.planner import Budget, Planner, apply_, plan_blueprint, plan_workload, prove
from frostline.records import Plan, ProofReport, from_json
from frostline.workflow.session import Device, OwnTreatments, open_group, verbs_of


def plan_system(config: RunConfig) -> Plan:
    """Plan one training step for `memory.budget`, from shapes alone: no weights, no data, no GPU.

    Args:
        config: Of any system.

    Raises:
        ConfigError: There is no budget, a value cannot be used, or nothing trains.
        BudgetError: No plan fits.
    """
    _require_budget(config)
    verbs = verbs_of(config)
    if isinstance(verbs, OwnTreatments):
        return verbs.plan(config)
    return plan_blueprint(*verbs.blueprint(config), budget=config.memory.budget)


def prove_system(config: RunConfig, *, plan: Plan | None = None, device: Device = "auto") -> tuple[ProofReport, Plan]:
    """Compare the gradients of a system's training step under a plan with those of the plain step.

    Args:
        config: Of any system.
        plan: What to prove; made for `memory.budget` where it is left out. A system with treatments of its own proves
            its configuration's where there is no budget either.
        device: Where the steps run; ``auto`` takes a GPU where there is one.

    Returns:
        The comparison, and what was compared.

    Raises:
        ConfigError: There is neither a plan nor a budget, a value cannot be used, or nothing trains.
        BudgetError: No plan fits.
        PlanError: The plan is for another model.
    """
    verbs = verbs_of(config)
    own = verbs if isinstance(verbs, OwnTreatments) else None
    if plan is None and own is None:
        _require_budget(config)
    if plan is not None:
        config = replace(config, memory=replace(config.memory, checkpoint="none", budget=""))
    group = open_group(device)
    try:
        if own is not None:
            return own.prove(config, plan, group)
        system = verbs.build(config, group, None)
        if not system.phases:
            raise ConfigError("the system has 0 trainable parameters: there is no training step to prove")
        work = system.workload()
        system.release_upstream_()
        plan = plan or plan_workload(work, budget=config.memory.budget)
        return prove(work.step, work.model, plan, optimizers=work.optimizers), plan
    finally:
        group.close()


class PlanInForce:
    """A plan that a workload's model is treated by, until another takes its place.

    Args:
        work: A step of the model.
        budget: As of `plan`.

    Attributes:
        plan: The one in force.
    """

    def __init__(self, work: Workload, budget: Budget) -> None:
        self._model, self._planner = work.model, Planner(work)
        self.plan = self._planner.plan(budget)
        self._applied = apply_(work.model, self.plan)

    def lower_(self) -> Plan:
        """Take a tenth off what the step needs beside what is resident, or go to the smallest peak if that is more.

        Returns:
            The plan that is in force now.

        Raises:
            BudgetError: The plan in force has the smallest peak. The model is treated by none then.
        """
        peak_bytes = self.plan.predicted_peak_bytes
        self.remove()
        budget = peak_bytes - max(1, (peak_bytes - self.plan.resident_bytes) // 10)
        try:
            self.plan = self._planner.plan(budget)
        except BudgetError as error:
            if error.smallest_bytes >= peak_bytes:
                raise
            self.plan = self._planner.plan(error.smallest_bytes)
        self._applied = apply_(self._model, self.plan)
        return self.plan

    def remove(self) -> None:
        """Leave the model as it was."""
        self._applied.remove()


@contextmanager
def planned(config: RunConfig, work: Workload) -> Iterator[PlanInForce | None]:
    """Treat a workload's model for `memory.budget`, and put it back.

    Without a budget, do nothing, nor for a system that was built by treatments of its own.
    """
    if not config.memory.budget or isinstance(verbs_of(config), OwnTreatments):
        yield None
        return
    in_force = PlanInForce(work, config.memory.budget)
    try:
        yield in_force
    finally:
        in_force.remove()


def read_plan(path: Path) -> Plan:
    """The plan that a file holds.

    Raises:
        ConfigError: The file cannot be read, or holds no plan.
    """
    try:
        record = from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise ConfigError(f"cannot read the plan: {reason}", where=str(path)) from None
    except FrostlineError as error:
        raise ConfigError(f"the file holds no plan: {error}", where=str(path)) from None
    if not isinstance(record, Plan):
        raise ConfigError(
            f"the file holds a {type(record).__name__}, not a plan",
            where=str(path),
            do="write one with `frostline plan CONFIG --memory.budget 6GiB --out plan.json`",
        )
    return record


def _require_budget(config: RunConfig) -> None:
    if not config.memory.budget:
        raise ConfigError("there is no budget to plan for", do="give --memory.budget 6GiB, or smallest")
