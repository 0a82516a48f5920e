"""Change what one module instance does, and take it back: no new type, no new state."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any

from torch import nn

from frostline.errors import StepError


class Override:
    """A stand-in for a bound method of one module, kept in the instance's own dictionary.

    It holds its module weakly, so a model that is no longer used is freed at once, and it names the module
    when it is copied or pickled, so a copy's override acts on the copy.

    Attributes:
        name: The method it stands in for.
        function: What is called, with the method that was there before as its first argument.
    """

    def __init__(self, module: nn.Module, name: str, function: Callable[..., Any], earlier: Any = None) -> None:
        self.name, self.function = name, function
        self._module = weakref.ref(module)
        self._earlier = earlier  # the instance attribute it covers; None where it covers the class's method
        self.__signature__ = inspect.signature(earlier or getattr(type(module), name).__get__(module))

    @property
    def __self__(self) -> nn.Module:
        """The module, as on every bound method."""
        module = self._module()
        if module is None:
            raise StepError(f"the module whose {self.name!r} this was is gone", do="keep a reference to the module")
        return module

    @property
    def inner(self) -> Callable[..., Any]:
        """What was there before: the class's method, an earlier override, or another instance attribute."""
        module, earlier = self.__self__, self._earlier
        if isinstance(earlier, Override):
            return earlier
        if earlier is None:
            method: MethodType = getattr(type(module), self.name).__get__(module)
            return method
        return MethodType(lambda _, *args, **kwargs: earlier(*args, **kwargs), module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call `function` in the method's place."""
        return self.function(self.inner, *args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return Override, (self.__self__, self.name, self.function, self._earlier)

    def remove(self) -> None:
        """Put back what was there before; overrides made later stay. Twice is once.

        Raises:
            StepError: The attribute was replaced by other code, so it cannot be put back safely.
        """
        module = self._module()
        if module is None or self.function is _removed:
            return
        later = vars(module).get(self.name)
        if later is self:
            if self._earlier is None:
                delattr(module, self.name)
            else:
                setattr(module, self.name, self._earlier)
        else:
            while isinstance(later, Override) and later._earlier is not self:
                later = later._earlier
            if not isinstance(later, Override):
                raise StepError(
                    f"{self.name!r} of {type(module).__name__} was replaced after frostline changed it",
                    do="undo the later replacement first",
                )
            later._earlier = self._earlier
        self.function = _removed


def override_(module: nn.Module, name: str, function: Callable[..., Any]) -> Override:
    """Let ``module.name(...)`` call ``function(inner, ...)`` on this instance only.

    Types, parameters and `state_dict` stay as they are. `inner` is the method that was there before, and
    ``inner.__self__`` the module. Overrides stack, and can be removed in any order.

    Args:
        module: The instance to change.
        name: A method such as ``"forward"`` or ``"train"``.
        function: A module-level function or another picklable callable, so that the model can be pickled.

    Returns:
        The handle whose `remove` puts everything back.
    """
    override = Override(module, name, function, vars(module).get(name))
    setattr(module, name, override)
    return override


def find_override(module: nn.Module, name: str, function: Callable[..., Any]) -> Override | None:
    """The override of `name` that calls `function`, however many lie above it."""
    override = vars(module).get(name)
    while isinstance(override, Override) and override.function is not function:
        override = override._earlier
    return override if isinstance(override, Override) else None


def _removed(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return inner(*args, **kwargs)
