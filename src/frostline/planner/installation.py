"""Carry out a plan on a model, and take it back."""

from __future__ import annotations

from types import TracebackType

from torch import nn

from frostline.errors import PlanError
from frostline.planner.treatments import Handle, ways
from frostline.records import Plan, Treatment


class Applied:
    """A plan that is in force; also a context manager that removes it.

    Attributes:
        plan: What was applied.
    """

    def __init__(self, plan: Plan, handles: tuple[Handle, ...]) -> None:
        self.plan, self._handles = plan, handles

    def remove(self) -> None:
        """Leave the model as it was before. Twice is once."""
        while self._handles:
            *rest, last = self._handles
            last.remove()
            self._handles = tuple(rest)

    def __enter__(self) -> Applied:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.remove()


def apply_(model: nn.Module, plan: Plan) -> Applied:
    """Treat a model as a plan says. Types, parameters, `state_dict` and copies stay as they are.

    Args:
        model: The one the plan was made for, or one with the same module names.
        plan: From `plan`, or read from a file.

    Returns:
        The handle whose `remove` takes it off again.

    Raises:
        PlanError: The model has no module of a name in the plan, or a kind or its arguments are not known; nothing is
            changed.
        ConfigError: A module cannot be treated, because it is treated already for example; nothing is changed.
    """
    modules = dict(model.named_modules())
    missing = [treatment.unit for treatment in plan.treatments if treatment.unit not in modules]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        names = ", ".join(map(repr, missing[:3])) + more
        raise PlanError(
            f"the plan is for another model: this {type(model).__name__} has no {names}",
            do="make a plan for this model, or apply it to the module that it was made for",
        )
    return Applied(plan, install_(model, plan.treated))


def install_(model: nn.Module, treatments: tuple[Treatment, ...]) -> tuple[Handle, ...]:
    """Install treatments one by one; after an exception, none is left."""
    rows = [(ways(treatment.kind, treatment.arguments), treatment) for treatment in treatments]
    handles: list[Handle] = []
    try:
        for way, treatment in rows:
            handles.append(way.install(model, treatment.unit, treatment.arguments))
    except BaseException:
        for handle in reversed(handles):
            handle.remove()
        raise
    return tuple(handles)
