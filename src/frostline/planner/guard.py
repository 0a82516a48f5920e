"""What a trial run may leave behind beside parameters, gradients and optimizer state, and how it is put back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from frostline.patches import wrapped
from frostline.planner.variables import holds_fake, no_fakes_kept
from frostline.regions import SCALER_METHODS

_OWN = ("_parameters", "_buffers", "_modules")


@contextmanager
def no_step_skipped() -> Iterator[None]:
    """Let gradient scalers step their optimizers where gradients have no values that could be infinite."""
    with wrapped(GradScaler, "_maybe_opt_step", lambda _: _step):
        yield


def _step(_: GradScaler, optimizer: torch.optim.Optimizer, state: Any, *args: Any, **kwargs: Any) -> Any:
    return optimizer.step(*args, **kwargs)


@contextmanager
def no_fakes_left(model: nn.Module, step: Callable[[], object]) -> Iterator[None]:
    """Take back what is remembered of a run without values, such as a mask that a module made once and kept.

    Args:
        model: The attributes of its modules.
        step: The variables that its function reaches.
    """
    before = {
        module: {name: (value, _contents(value)) for name, value in vars(module).items() if name not in _OWN}
        for module in model.modules()
    }
    try:
        with no_fakes_kept(step):
            yield
    finally:
        for module, attributes in before.items():
            for name in [name for name, value in vars(module).items() if name not in _OWN and holds_fake(value)]:
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


@contextmanager
def no_training() -> Iterator[None]:
    """Let a step that runs without gradients go on past its backward, its scaler and its optimizers."""
    with ExitStack() as stack:
        stack.enter_context(wrapped(Tensor, "backward", _only_with_graph))
        stack.enter_context(wrapped(torch.autograd, "backward", _only_with_graph))
        stack.enter_context(wrapped(GradScaler, "scale", lambda _: lambda self, outputs: outputs))
        for name in SCALER_METHODS[1:]:
            stack.enter_context(wrapped(GradScaler, name, lambda _: lambda *args, **kwargs: None))
        yield


def _only_with_graph(backward: Callable[..., Any]) -> Callable[..., Any]:
    def call(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        leaves = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        if any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves):
            return backward(tensors, *args, **kwargs)
        return None

    return call
