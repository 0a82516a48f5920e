"""What a trial run may leave behind beside parameters, gradients and optimizer state, and how it is put back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.amp.grad_scaler import GradScaler
from torch.utils._pytree import tree_map

from frostline.tracing.patches import wrapped

_SCALER_METHODS = ("scale", "unscale_", "step", "update")
_OWN = ("_parameters", "_buffers", "_modules")


@contextmanager
def same_scalers(*, fake: bool) -> Iterator[None]:
    """Put every gradient scaler that is used inside back to its state before.

    Args:
        fake: Whether the gradients have no values: then no step is skipped for want of finite ones.
    """
    scalers: dict[int, tuple[GradScaler, dict[str, Any]]] = {}

    def noting(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: GradScaler, *args: Any, **kwargs: Any) -> Any:
            if id(self) not in scalers:
                scalers[id(self)] = self, {name: _saved(value) for name, value in vars(self).items()}
            return method(self, *args, **kwargs)

        return call

    def stepping(_: Callable[..., Any]) -> Callable[..., Any]:
        return lambda self, optimizer, state, *args, **kwargs: optimizer.step(*args, **kwargs)

    with ExitStack() as stack:
        for name in _SCALER_METHODS:
            stack.enter_context(wrapped(GradScaler, name, noting))
        if fake:
            stack.enter_context(wrapped(GradScaler, "_maybe_opt_step", stepping))
        try:
            yield
        finally:
            for scaler, attributes in scalers.values():
                vars(scaler).clear()
                vars(scaler).update({name: _put_back(value) for name, value in attributes.items()})


def _saved(value: Any) -> Any:
    """A tensor with its values, for it is changed in place; a copy of anything else."""
    return (value, value.clone()) if isinstance(value, Tensor) else copy.copy(value)


def _put_back(value: Any) -> Any:
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], Tensor):
        return value[0].copy_(value[1])
    return value


@contextmanager
def no_fakes_left(model: nn.Module) -> Iterator[None]:
    """Take back what modules remembered of a run without values, such as a mask that they made once and kept."""
    before = {
        module: {name: (value, _contents(value)) for name, value in vars(module).items() if name not in _OWN}
        for module in model.modules()
    }
    try:
        yield
    finally:
        for module, attributes in before.items():
            for name in [name for name, value in vars(module).items() if name not in _OWN and _holds_fake(value)]:
                if name not in attributes:
                    delattr(module, name)
                    continue
                value, contents = attributes[name]
                if isinstance(contents, (dict, list)):
                    value.clear()
                    value.update(contents) if isinstance(value, dict) else value.extend(contents)
                setattr(module, name, value)


def _contents(value: Any) -> Any:
    return copy.copy(value) if type(value) in (dict, list) else None


def _holds_fake(value: Any) -> bool:
    found: list[bool] = []
    tree_map(lambda leaf: found.append(isinstance(leaf, FakeTensor)), value)
    return any(found)


@contextmanager
def no_training() -> Iterator[None]:
    """Let a step that runs without gradients go on past its backward, its scaler and its optimizers."""
    with ExitStack() as stack:
        stack.enter_context(wrapped(Tensor, "backward", _only_with_graph))
        stack.enter_context(wrapped(torch.autograd, "backward", _only_with_graph))
        stack.enter_context(wrapped(GradScaler, "scale", lambda _: lambda self, outputs: outputs))
        for name in _SCALER_METHODS[1:]:
            stack.enter_context(wrapped(GradScaler, name, lambda _: lambda *args, **kwargs: None))
        yield


def _only_with_graph(backward: Callable[..., Any]) -> Callable[..., Any]:
    def call(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        leaves = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        if any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves):
            return backward(tensors, *args, **kwargs)
        return None

    return call
