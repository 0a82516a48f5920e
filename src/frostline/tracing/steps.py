"""Where one training step ends and the next begins, in a program that does not say so."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from frostline.patches import wrapped


class StepWatch:
    """Tell the steps of whatever runs inside.

    An update is one `step()` of an optimizer or of a gradient scaler after a backward, a skipped one included. A step
    ends at the first forward of a root module, backward or `zero_grad` after a backward's updates, or on exit.
    Backwards through `torch.autograd.grad` do not count, nor does what an optimizer's closure runs.

    Args:
        began: Called at the first forward, backward or `zero_grad` of each step, before it runs.
        ended: Called with the optimizers that really stepped, in order; empty where every update was skipped. It
            may raise, to end the program.
    """

    def __init__(
        self, *, began: Callable[[], None], ended: Callable[[tuple[torch.optim.Optimizer, ...]], None]
    ) -> None:
        self._began, self._ended = began, ended
        self._stepped: list[torch.optim.Optimizer] = []
        self._inside = self._backward = self._updated = False
        self._running: list[nn.Module] = []
        self._num_optimizers_running = 0
        self._home = os.getpid(), threading.get_ident()
        self._cleanup = ExitStack()

    def __enter__(self) -> StepWatch:
        """Start to watch, in this thread."""
        self._home = os.getpid(), threading.get_ident()
        with ExitStack() as stack:
            stack.callback(self._running.clear)
            stack.enter_context(wrapped(torch.autograd, "backward", self._around_backward))
            stack.enter_context(wrapped(torch.optim.Optimizer, "zero_grad", self._around_zero_grad))
            stack.enter_context(wrapped(nn.Module, "zero_grad", self._around_zero_grad))
            stack.enter_context(wrapped(torch.amp.GradScaler, "step", self._around_scaler))
            for handle in (
                register_module_forward_pre_hook(self._enter_module),
                register_module_forward_hook(self._leave_module, always_call=True),
                register_optimizer_step_pre_hook(self._before_optimizer),
                register_optimizer_step_post_hook(self._after_optimizer),
            ):
                stack.callback(handle.remove)
            self._cleanup = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop; a step whose updates are done has ended."""
        self._cleanup.close()
        if self._updated:
            self._end()

    def _boundary(self) -> None:
        """A forward, a backward or a `zero_grad` is about to run."""
        if self._num_optimizers_running or self._elsewhere():
            return
        if self._updated:
            self._end()
        if not self._inside:
            self._inside = True
            self._began()

    def _end(self) -> None:
        stepped = tuple(self._stepped)
        self._stepped.clear()
        self._inside = self._backward = self._updated = False
        self._ended(stepped)

    def _elsewhere(self) -> bool:
        # Not the thread of the steps, a forked loader process, or a forward that backward recomputes.
        return (os.getpid(), threading.get_ident()) != self._home or torch._C._current_graph_task_id() != -1

    def _enter_module(self, module: nn.Module, _: object) -> None:
        if not self._running:
            self._boundary()  # may raise, before anything is noted down
        if not self._elsewhere():
            self._running.append(module)

    def _leave_module(self, module: nn.Module, _: object, __: object) -> None:
        if self._running and self._running[-1] is module and not self._elsewhere():
            self._running.pop()

    def _around_backward(self, backward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(backward)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self._boundary()
            if not self._elsewhere():
                self._backward = True
            return backward(*args, **kwargs)

        return watched

    def _around_zero_grad(self, zero_grad: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(zero_grad)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self._boundary()
            return zero_grad(*args, **kwargs)

        return watched

    def _around_scaler(self, step: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(step)
        def watched(*args: Any, **kwargs: Any) -> Any:
            result = step(*args, **kwargs)
            self._update()  # also where the gradients overflowed and no optimizer has stepped
            return result

        return watched

    def _before_optimizer(self, *_: object) -> None:
        self._num_optimizers_running += 1

    def _after_optimizer(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self._num_optimizers_running = max(0, self._num_optimizers_running - 1)
        if self._update() and optimizer not in self._stepped:
            self._stepped.append(optimizer)

    def _update(self) -> bool:
        """Note an update, if there was a backward before it."""
        self._updated = self._updated or self._backward
        return self._backward
