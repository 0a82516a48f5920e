"""Run steps on a model and leave no trace: every value, mode and random state comes back."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map


@contextmanager
def preserved(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer] = ()) -> Iterator[None]:
    """Put model, optimizers and random generators back on exit, also after an exception.

    Back come: parameters that require gradients or belong to an optimizer, every parameter's `.grad` and
    `requires_grad`, every buffer, module modes, optimizer state (what did not exist before is gone) and
    parameter groups, and the generators of torch (CPU and CUDA), numpy and Python. Parameters, gradients,
    buffers and state stay the same tensor objects. The saved values lie in host memory, so a step on a GPU
    has all of its memory. Schedulers, scalers and data iterators are the step's own affair.
    """
    optimizers = tuple(optimizers)
    with _same_random_numbers(), _same_optimizers(optimizers), _same_model(model, optimizers):
        yield


def optimizers_of(given: Iterable[torch.optim.Optimizer] | torch.optim.Optimizer) -> tuple[torch.optim.Optimizer, ...]:
    """All optimizers that were given, also where it is one by itself."""
    return (given,) if isinstance(given, torch.optim.Optimizer) else tuple(given)


@dataclass(frozen=True)
class _Saved:
    """A tensor and a copy of its values."""

    tensor: Tensor
    values: Tensor

    def restore(self) -> Tensor:
        with torch.no_grad():
            self.tensor.copy_(self.values)
        return self.tensor


def _save(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _Saved(value, value.detach().to("cpu", copy=True))
    return copy.deepcopy(value)


def _restore(value: Any) -> Any:
    return value.restore() if isinstance(value, _Saved) else value


@contextmanager
def _same_model(model: nn.Module, optimizers: tuple[torch.optim.Optimizer, ...]) -> Iterator[None]:
    stepped = {parameter for optimizer in optimizers for parameter in _parameters(optimizer)}
    parameters = stepped.union(model.parameters())
    values = [_save(parameter) for parameter in parameters if parameter.requires_grad or parameter in stepped]
    flags = [(parameter, parameter.requires_grad, _save(parameter.grad)) for parameter in parameters]
    modules = [(module, module.training, tree_map(_save, module._buffers)) for module in model.modules()]
    try:
        yield
    finally:
        for saved in values:
            saved.restore()
        for parameter, requires_grad, grad in flags:
            parameter.requires_grad_(requires_grad)
            parameter.grad = _restore(grad)
        for module, training, buffers in modules:
            module.training = training
            module._buffers.clear()
            module._buffers.update({name: _restore(buffer) for name, buffer in buffers.items()})


@contextmanager
def _same_optimizers(optimizers: tuple[torch.optim.Optimizer, ...]) -> Iterator[None]:
    states = [{key: tree_map(_save, state) for key, state in opt.state.items()} for opt in optimizers]
    settings = [[_settings(group) for group in optimizer.param_groups] for optimizer in optimizers]
    try:
        yield
    finally:
        for optimizer, state, groups in zip(optimizers, states, settings, strict=True):
            optimizer.state.clear()
            optimizer.state.update({key: tree_map(_restore, saved) for key, saved in state.items()})
            del optimizer.param_groups[len(groups) :]
            for group, saved in zip(optimizer.param_groups, groups, strict=True):
                group.clear()
                group.update({name: _restore(value) for name, value in saved.items()})


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value if name == "params" else _save(value) for name, value in group.items()}


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    initialized = torch.cuda.is_initialized()
    devices = range(torch.cuda.device_count()) if initialized else ()
    python, legacy_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy_numpy)
