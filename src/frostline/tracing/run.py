"""Watch a whole run whose models, optimizers and data are not known beforehand."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from frostline.tracing.log import Allocation
from frostline.tracing.memtrace import MemTrace, parameters_of, tensors_in
from frostline.where import user_frame


class RunTrace(MemTrace):
    """A `MemTrace` from a program's birth: it finds out by itself what there is.

    A module that is called while no other runs is a root; it gets the name of the user's variable. Parameters are
    recognised when an operator reads them or an optimizer steps them, everything else that is alive by `examine`.
    What no operator made (a batch from a loader process, a memory-mapped file) arrives when it is first read. What
    the program made before its first forward, and what a root is given, are inputs.

    Modules and optimizers that were there before are none of this run's.
    """

    def __init__(self, *, stacks: bool = False) -> None:
        super().__init__(nn.Module(), stacks=stacks)
        self._strangers: weakref.WeakSet[Any] = weakref.WeakSet()
        self._any_forward = False

    def __enter__(self) -> RunTrace:
        """Start to listen."""
        self._strangers = weakref.WeakSet(_living())
        super().__enter__()
        return self

    def examine(self) -> tuple[torch.optim.Optimizer, ...]:
        """Recognise every module and optimizer that is alive; returns the optimizers."""
        optimizers = []
        for thing in _living():
            if thing in self._strangers:
                continue
            if isinstance(thing, nn.Module):
                self._examine_module(thing)
            else:
                optimizers.append(thing)
                self._classify(list(thing.state.values()), "optimizer state")
        return tuple(optimizers)

    def _examine_module(self, module: nn.Module) -> None:
        for parameter in module._parameters.values():
            if parameter is not None and not is_lazy(parameter):
                self._classify(parameter, "parameters")
                self._classify(parameter.grad, "gradients")
                self._follow_gradient(parameter)
        buffers = [buffer for buffer in module._buffers.values() if buffer is not None and not is_lazy(buffer)]
        self._classify(buffers, "buffers")

    def _see(self, tensor: Tensor, func: Any, *, before: bool) -> list[Allocation]:
        allocations = super()._see(tensor, func, before=before)
        if isinstance(tensor, nn.Parameter):
            for allocation in allocations:
                if allocation.kind in ("step", "inputs"):
                    allocation.kind = "parameters"
            self._follow_gradient(tensor)
        return allocations

    def _arrive(self, number: int, allocation: Allocation) -> None:
        allocation.module = ""
        self.log.events.append((number, allocation.num_bytes))

    def _follow_gradient(self, parameter: Tensor) -> None:
        if not parameter.requires_grad or not parameter.is_leaf:
            return
        hooks = getattr(parameter, "_post_accumulate_grad_hooks", None) or {}
        if self._after_gradient not in hooks.values():
            handle = parameter.register_post_accumulate_grad_hook(self._after_gradient)
            self._cleanup.callback(handle.remove)

    def _enter_module(self, module: nn.Module, args: Any) -> None:
        if self._elsewhere():
            return
        if not self._running and torch._C._current_graph_task_id() == -1:
            self._enter_root(module, args)
        if module not in self._names:  # made on the way
            around = f"{self._running[-1][1]}." if self._running else ""
            self._names[module] = around + type(module).__name__
        super()._enter_module(module, args)

    def _enter_root(self, module: nn.Module, args: Any) -> None:
        if not self._any_forward:
            self._any_forward = True
            for number, _ in self._alive.values():
                if self.log.allocations[number].kind == "step":
                    self.log.allocations[number].kind = "inputs"
        if module not in self._names:
            name = self._free_name(_name_of(module))
            for path, child in module.named_modules():
                self._names.setdefault(child, f"{name}.{path}" if path else name)
                self._examine_module(child)
        for tensor in tensors_in(args):
            if tensor.grad_fn is None and not tensor.requires_grad:
                for allocation in self._see(tensor, None, before=True):
                    if allocation.kind == "step" and allocation.phase == "forward" and not allocation.module:
                        allocation.kind = "inputs"

    def _free_name(self, name: str) -> str:
        taken, number, free = set(self._names.values()), 1, name
        while free in taken:
            number += 1
            free = f"{name} ({number})"
        return free

    def _before_optimizer(self, optimizer: torch.optim.Optimizer, *rest: object) -> None:
        for parameter in parameters_of(optimizer):
            self._classify(parameter, "parameters")
            self._follow_gradient(parameter)
        super()._before_optimizer(optimizer, *rest)


def _living() -> list[Any]:
    """Every module and optimizer there is; `type` asks nothing of objects that pretend to be others."""
    return [thing for thing in gc.get_objects() if issubclass(type(thing), (nn.Module, torch.optim.Optimizer))]


def _name_of(module: nn.Module) -> str:
    """The variable of the calling user code that holds a module, or holds a module with it inside."""
    frame = user_frame()
    for variables in (frame.f_locals, frame.f_globals) if frame else ():
        for name, value in list(variables.items()):
            if not issubclass(type(value), nn.Module):
                continue
            for path, child in value.named_modules():
                if child is module:
                    owner = type(value).__name__ if name == "self" else name
                    return f"{owner}.{path}" if path else owner
    return type(module).__name__
