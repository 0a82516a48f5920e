"""One run of a program up to a backward pass, where its loss is read and the run is ended."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from frostline.gradflow.target import Movement
from frostline.patches import wrapped
from frostline.tracing import DoublePrecision
from frostline.tracing.leaves import is_recomputing
from frostline.where import is_library


class Ended(BaseException):
    """Raised in a program that has been seen far enough."""


class Rerun:
    """What one run is to do, and what was read in it.

    Args:
        mode: The run's precision.
        movements: What moves, or is only looked at; one for each watch, in order, and more.
        watches: By movement: the backward passes whose losses are read, counted from 0, and a variable to read in the
            loss's stead, or an empty name.
        end: Raised at the last of them.
        differentiate: Whether autograd's gradients along the movements are read too.

    Attributes:
        losses: By watch: by backward pass, the loss.
        slopes: By watch: by backward pass, autograd's gradient along the direction.
        positions: By watch: where its parameters stood along the direction, when the loss was read.
        trouble: What the program raised.
        has_ended: Whether the last backward pass was reached.
    """

    def __init__(
        self,
        mode: DoublePrecision,
        movements: Sequence[Movement],
        watches: Sequence[tuple[Sequence[int], str]],
        end: type[BaseException] = Ended,
        *,
        differentiate: bool = False,
    ) -> None:
        self.movements = movements
        self.losses: list[dict[int, float]] = [{} for _ in watches]
        self.slopes: list[dict[int, float]] = [{} for _ in watches]
        self.positions: list[float | None] = [None for _ in watches]
        self.trouble, self.has_ended = "", False
        self._mode, self._watches, self._end, self._differentiate = mode, watches, end, differentiate
        self._last = max((number for numbers, _ in watches for number in numbers), default=-1)
        self._num_backwards = 0
        self._asking = False

    def move(self) -> None:
        """Move what has been found; what moves first is left alone by the others."""
        with self._mode.aside():
            for movement in self.movements:
                for tensor in movement.waiting:
                    self._mode.raise_(tensor)
                first = self.movements[0].tensors if movement is not self.movements[0] and movement.by else ()
                movement.move(apart_from=first)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read losses at the program's backward passes inside the block, and undo its updates."""
        with updates_undone(self._mode), wrapped(torch.autograd, "_engine_run_backward", self._wrap_engine):
            yield

    def _wrap_engine(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def run(outputs: Any, *args: Any, **kwargs: Any) -> Any:
            if self._asking or is_recomputing():
                return original(outputs, *args, **kwargs)
            number, self._num_backwards = self._num_backwards, self._num_backwards + 1
            watching = [w for w, (numbers, _) in enumerate(self._watches) if number in numbers]
            self._read(number, watching, outputs, args[0])
            if number < self._last:
                before = self._slopes(watching)
                results = original(outputs, *args, **kwargs)
                self._note_slopes(number, watching, before, args, results)
                return results
            if self._differentiate and any(tensor.requires_grad for tensor in outputs):
                before = self._slopes(watching)
                results = original(outputs, *args, **kwargs)
                self._note_slopes(number, watching, before, args, results)
            self.has_ended = True
            raise self._end

        return run

    def _read(self, number: int, watching: list[int], outputs: Sequence[Tensor], weights: Any) -> None:
        if not watching:
            return
        with self._mode.aside(), torch.no_grad():
            loss = sum(
                float((t.detach() * (1.0 if w is None else w)).sum()) for t, w in zip(outputs, weights, strict=True)
            )
        for watch in watching:
            movement, term = self.movements[watch], self._watches[watch][1]
            scalar = _find_scalar(term) if term else None
            if not movement.is_complete or (term and scalar is None):
                continue
            with self._mode.aside():
                self.losses[watch][number] = loss if scalar is None else float(scalar.detach())
                self.positions[watch] = movement.along(lambda tensor: tensor)
            if self._differentiate and scalar is not None:
                self.slopes[watch][number] = self._slope_of(scalar, movement)

    def _slope_of(self, scalar: Tensor, movement: Movement) -> float:
        """Autograd's gradient of one scalar alone."""
        wanted = [tensor for tensor in movement.tensors if tensor.requires_grad]
        if not scalar.requires_grad or not wanted:
            return 0.0
        self._asking = True
        try:
            found = torch.autograd.grad(scalar, wanted, retain_graph=True, allow_unused=True)
        finally:
            self._asking = False
        gradients = {id(tensor): gradient for tensor, gradient in zip(wanted, found, strict=True)}
        with self._mode.aside():
            return movement.along(lambda tensor: gradients.get(id(tensor)))

    def _slopes(self, watching: list[int]) -> dict[int, float]:
        """Along each direction, the gradients that lie in `.grad`."""
        if not self._differentiate:
            return {}
        with self._mode.aside():
            return {watch: self.movements[watch].along(lambda tensor: tensor.grad) for watch in watching}

    def _note_slopes(self, number: int, watching: list[int], before: dict[int, float], args: Any, results: Any) -> None:
        if not self._differentiate:
            return
        after = self._slopes(watching)
        returned = {id(t): g for t, g in zip(args[3] or (), results or (), strict=False) if isinstance(g, Tensor)}
        with self._mode.aside():
            for watch in watching:
                if not self._watches[watch][1]:
                    more = self.movements[watch].along(lambda tensor: returned.get(id(tensor))) if returned else 0.0
                    self.slopes[watch][number] = after[watch] - before[watch] + more


@contextmanager
def updates_undone(mode: DoublePrecision) -> Iterator[None]:
    """Put parameters back after every optimizer step: later losses follow them by the forward alone."""
    held: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def before(optimizer: Optimizer, _: Any, __: Any) -> None:
        tensors = [tensor for group in optimizer.param_groups for tensor in group["params"]]
        with mode.aside():
            held[id(optimizer)] = [(tensor, tensor.detach().clone()) for tensor in tensors]

    def after(optimizer: Optimizer, _: Any, __: Any) -> None:
        with mode.aside():
            for tensor, value in held.pop(id(optimizer), ()):
                tensor.data.copy_(value)

    with ExitStack() as stack:
        stack.callback(register_optimizer_step_pre_hook(before).remove)
        stack.callback(register_optimizer_step_post_hook(after).remove)
        yield


@contextmanager
def same_attributes(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put plain attributes of modules back, lists and dictionaries among them: caches filled inside the block go."""
    saved = [(vars(module), {name: _saved(value) for name, value in vars(module).items()}) for module in modules]
    try:
        yield
    finally:
        for attributes, values in saved:
            attributes.clear()
            attributes.update({name: _restored(value) for name, value in values.items()})


def _saved(value: Any) -> tuple[Any, Any]:
    return value, value.copy() if type(value) in (list, dict) else None


def _restored(saved: tuple[Any, Any]) -> Any:
    value, content = saved
    if isinstance(content, list):
        value[:] = content
    elif isinstance(content, dict):
        value.clear()
        value.update(content)
    return value


def _find_scalar(name: str) -> Tensor | None:
    """A tensor of one element in the variables of the frames above, their dictionaries and their attributes."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if not is_library(frame.f_code.co_filename):
            for variables in _scopes(frame.f_locals, 2):
                value = variables.get(name)
                if isinstance(value, Tensor) and value.numel() == 1:
                    return value
        frame = frame.f_back
    return None


def _scopes(variables: dict[str, Any], depth: int) -> Iterator[dict[str, Any]]:
    yield variables
    for value in list(variables.values()) if depth else ():
        inner = value if isinstance(value, dict) else getattr(value, "__dict__", None)
        if isinstance(inner, dict) and not isinstance(value, nn.Module | ModuleType):
            yield from _scopes(inner, depth - 1)
