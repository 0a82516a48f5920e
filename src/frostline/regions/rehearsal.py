"""Run whole training steps and leave no trace: what `preserved` puts back, and what else a step moves."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim.lr_scheduler import LRScheduler
from torch.utils._python_dispatch import TorchDispatchMode

from frostline.patches import wrapped
from frostline.regions.preserve import preserved

SCALER_METHODS = ("scale", "unscale_", "step", "update")


@contextmanager
def rehearsal(
    model: nn.Module, optimizers: Iterable[torch.optim.Optimizer] = (), *, real: bool = True
) -> Iterator[None]:
    """Put back what a training step moves, also after an exception.

    Beside what `preserved` puts back, these are gradient scalers and learning-rate schedulers that are used inside, and
    frozen parameters that the step itself writes, such as those of a mean teacher. Data iterators, counters and other
    variables of the step are its own affair.

    Args:
        model: Its parameters, buffers and modes.
        optimizers: All that the steps step.
        real: Whether values are computed inside; without, nothing can write a parameter.
    """
    optimizers = tuple(optimizers)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    stepped = {parameter for group in groups for parameter in group["params"]}
    frozen = [each for each in model.parameters() if not each.requires_grad and each not in stepped] if real else []
    with preserved(model, optimizers), _same_schedules(), _SavesBeforeWriting(frozen) if frozen else nullcontext():
        yield


class _SavesBeforeWriting(TorchDispatchMode):
    """Copies a parameter to the host when something is about to write it, and puts it back on exit.

    A version counter would not tell: writes through `.data` have another one.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kept: dict[int, list[nn.Parameter]] = {}
        for parameter in parameters:
            self._kept.setdefault(_storage(parameter), []).append(parameter)
        self._data = [(parameter, parameter.data) for parameter in parameters]
        self._saved: list[tuple[nn.Parameter, Tensor]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._kept and func._schema.is_mutable:
            for place, argument in enumerate(func._schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self._save(args[place] if place < len(args) else kwargs.get(argument.name))
        return func(*args, **kwargs)

    def _save(self, written: Any) -> None:
        for tensor in written if isinstance(written, (list, tuple)) else (written,):
            parameters = self._kept.pop(_storage(tensor), []) if isinstance(tensor, Tensor) else []
            self._saved += [(parameter, parameter.detach().to("cpu", copy=True)) for parameter in parameters]

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        for parameter, data in self._data:
            if _storage(parameter) != _storage(data):
                parameter.data = data
        with torch.no_grad():
            for parameter, values in self._saved:
                parameter.copy_(values)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@contextmanager
def _same_schedules() -> Iterator[None]:
    """Put every gradient scaler and learning-rate scheduler that is used inside back to its state before."""
    used: dict[int, tuple[Any, dict[str, Any]]] = {}

    def noting(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            if id(self) not in used:
                used[id(self)] = self, {name: _saved(value) for name, value in vars(self).items()}
            return method(self, *args, **kwargs)

        return call

    with ExitStack() as stack:
        for name in SCALER_METHODS:
            stack.enter_context(wrapped(GradScaler, name, noting))
        for kind in _kinds(LRScheduler):
            if "step" in vars(kind):
                stack.enter_context(wrapped(kind, "step", noting))
        try:
            yield
        finally:
            for each, attributes in used.values():
                vars(each).clear()
                vars(each).update({name: _put_back(value) for name, value in attributes.items()})


def _kinds(kind: type[Any]) -> set[type[Any]]:
    found = {kind}
    for narrower in kind.__subclasses__():
        found |= _kinds(narrower)
    return found


def _saved(value: Any) -> Any:
    """A tensor with its values, for it is changed in place; a shallow copy of a container; anything else itself."""
    if isinstance(value, Tensor):
        return value, value.clone()
    return copy.copy(value) if isinstance(value, (list, dict)) else value


def _put_back(value: Any) -> Any:
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], Tensor):
        return value[0].copy_(value[1])
    return value
