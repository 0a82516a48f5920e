"""Every error a user can meet: what is wrong, where, and what to do.

The text is made here and nowhere else, so that each one can be rendered by a test:

    FrostlineError (ValueError)
    ├── ConfigError        a key, a value or a file of the configuration
    │   └── PlanError      a plan that does not fit the model, or the step
    │       └── BudgetError  a budget that no plan fits into
    ├── DataError          a picture, a caption file, an empty set
    ├── CheckpointError    a checkpoint that is missing, damaged or of another run
    ├── ShapeError         two shapes that had to agree
    ├── DeviceError        a device that is not there
    ├── StepError          a step that cannot be run or measured
    ├── AuditError         a step that can be run, and should not be: its gradients are wrong
    └── MissingExtraError  an optional package that is not installed
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any


class FrostlineError(ValueError):
    """An error with three parts, printed in this order.

    Args:
        what: What is wrong, with the value.
        where: The file, key or line it comes from; left out when empty.
        do: What the user can do about it; left out when empty.
    """

    def __init__(self, what: str, *, where: str = "", do: str = "") -> None:
        self.what, self.where, self.do = what, where, do
        parts = [what]
        if where:
            parts.append(f"  where  {where}")
        if do:
            parts.append(f"  do     {do}")
        super().__init__("\n".join(parts))

    def __reduce__(self) -> tuple[Any, ...]:
        # Loader processes send errors home; the constructors of subclasses take other arguments than the text.
        return _restore, (type(self), self.args, self.__dict__)


def _restore(kind: type[FrostlineError], args: tuple[Any, ...], fields: dict[str, Any]) -> FrostlineError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(fields)
    return error


class ConfigError(FrostlineError):
    """A key, a value or a file of the configuration cannot be used."""


class PlanError(ConfigError):
    """A plan does not fit the model, or a step cannot be planned."""


class BudgetError(PlanError):
    """No plan brings the step under the budget.

    Args:
        what: The budget, the smallest peak, and what holds memory there.
        smallest_bytes: The smallest peak that a run of the step reached.
        do: What the user can do about it.
    """

    def __init__(self, what: str, *, smallest_bytes: int, do: str = "") -> None:
        self.smallest_bytes = smallest_bytes
        super().__init__(what, do=do)


class DataError(FrostlineError):
    """An input file cannot be used."""


class CheckpointError(FrostlineError):
    """A checkpoint is missing, damaged or belongs to another run."""


class DeviceError(FrostlineError):
    """A device was asked for that is not there."""


class StepError(FrostlineError):
    """A step cannot be run or measured."""


class AuditError(FrostlineError):
    """A step has faults that nobody has accepted."""


class ShapeError(FrostlineError):
    """Two shapes that had to agree do not.

    Args:
        what: Which tensor has the wrong shape.
        expected: The shape it must have; a ``str`` entry names a free size.
        actual: The shape it has.
        where: Who made it.
        do: What the user can do about it.
    """

    def __init__(
        self,
        what: str,
        *,
        expected: tuple[int | str, ...],
        actual: tuple[int, ...],
        where: str = "",
        do: str = "",
    ) -> None:
        self.expected, self.actual = expected, actual
        wanted = ", ".join(str(size) for size in expected)
        given = ", ".join(str(size) for size in actual)
        super().__init__(f"{what} must have shape ({wanted}), got ({given})", where=where, do=do)


class MissingExtraError(FrostlineError):
    """An optional package is not installed.

    Args:
        package: The distribution that is missing.
        extra: The extra of frostline that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        self.package, self.extra = package, extra
        super().__init__(f"{package} is not installed", do=f"pip install 'frostline[{extra}]'")


def import_extra(module: str, *, extra: str) -> ModuleType:
    """Import an optional module, or say which extra brings it.

    Raises:
        MissingExtraError: The module's package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError((error.name or module).partition(".")[0], extra) from None
