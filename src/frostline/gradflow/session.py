"""One audit while it runs: it cuts the program's course into steps, and lets every rule look at each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from frostline.gradflow.intent import Intent
from frostline.gradflow.names import Names
from frostline.gradflow.rule import Rule
from frostline.gradflow.step import Clearing, Clipping, Step, Tally
from frostline.tracing import (
    Backward,
    Change,
    FlowTrace,
    Leaf,
    Leaves,
    OptimizerUse,
    ProcedureTrace,
    Update,
    gradient_state,
    has_values,
)
from frostline.where import Line


class ByHand(Optimizer):
    """Stands for a program that updates parameters itself, without an optimizer."""

    def __init__(self, parameters: list[Tensor]) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Any = None) -> Any:
        """Nothing: the program does it."""


class Session:
    """Watches a program and cuts it into steps.

    A step ends at the first forward, backward or `zero_grad` after a backward's updates, or with the program.

    Args:
        intent: What the author declared.
        enough: Asked after every step with its number; called off when it says so by raising.

    Attributes:
        flow: The trace above autograd.
        procedure: The trace of optimizers and what surrounds them.
        names: What modules and tensors are called.
        contributions: By leaf: backward passes that are in its gradient.
        consumed: By leaf and optimizer: backward passes that optimizer has stepped with.
        error: What the program raised.
        last_backward: The backward pass that began last.
        last_changes: Tensors written in place in the step that closed last.
        rules: The families of findings that look at every step.
        loss_values: By backward pass: the loss's value, not yet read.
    """

    def __init__(
        self,
        intent: Intent,
        enough: Callable[[Session], None] | None = None,
    ) -> None:
        self.intent, self.names, self.leaves = intent, Names(), Leaves()
        self.flow = FlowTrace(self, self.leaves)
        self.procedure = ProcedureTrace(self, self.flow)
        self.contributions: dict[int, list[Backward]] = {}
        self.consumed: dict[tuple[int, int], set[Backward]] = {}
        self.loss_values: dict[Backward, Tensor] = {}
        self.last_changes: list[Change] = []
        self.error: BaseException | None = None
        self.last_backward: Backward | None = None
        self.step = Step(0)
        self.phases: dict[tuple[tuple[int, ...], tuple[Line | None, ...]], Tally] = {}
        self.wall_seconds = 0.0
        self.is_fake = torch._guards.detect_fake_mode() is not None
        self._enough = enough
        self._by_hand: dict[Line | None, OptimizerUse] = {}
        self._begun = self._any_forward = False
        self._reads: dict[int, int] = {}
        self._scaler_updates: list[tuple[int, Line | None]] = []
        self.rules: list[Rule] = []

    # --- what is watched

    def watch(self, module: nn.Module, name: str = "") -> None:
        """Name a module, and number its trainable parameters."""
        self.names.add_module(module, name)
        for parameter in module.parameters():
            if parameter.requires_grad:
                self.leaves.add(parameter)

    def watch_optimizer(self, optimizer: Optimizer) -> None:
        """Know an optimizer before it steps, and number its parameters."""
        self.procedure.know(optimizer)

    @contextmanager
    def running(self) -> Iterator[Session]:
        """Watch what runs inside the block, an exception included."""
        start = time.perf_counter()
        try:
            with ExitStack() as stack:
                stack.enter_context(self.procedure.installed())
                stack.enter_context(self.flow)
                try:
                    yield self
                except BaseException as error:
                    self.error = error
                    raise
                finally:
                    self._close(self.error)
        finally:
            self.wall_seconds += time.perf_counter() - start

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """Let the audit's own operators pass unseen."""
        paused, self.flow.paused = self.flow.paused, True
        try:
            yield
        finally:
            self.flow.paused = paused

    def prepared(self) -> None:
        """Forget the steps so far; what was made, frozen and named stays known."""
        self.flow.end_step()
        self.phases.clear()
        self.contributions.clear()
        self.consumed.clear()
        self.loss_values.clear()
        for use in self.procedure.optimizers.values():
            use.num_updates = 0
        self.step, self._begun = Step(self.step.index + 1), False
        self.flow.step = self.step.index

    # --- what the traces tell

    def began_forward(self, module: nn.Module) -> None:
        """A module is called from outside all others."""
        self._close_updated()
        with self.unseen():
            if not self.names.roots or not self._any_forward:
                self._any_forward = True
                self.flow.notes.writes.clear()  # what initialised the parameters
            if not self.names.knows(module):
                self.names.discover(module)
            self._begin()

    def began_backward(self, backward: Backward, root: Tensor | None) -> None:
        """Autograd is about to go backward."""
        self._close_updated()
        backward.step = self.step.index
        self.step.backwards.append(backward)
        self.last_backward = backward
        self._scaler_updates.clear()
        with self.unseen():
            self._begin()
            self._drop_cleared()
            if root is not None and root.numel() == 1 and has_values(root):
                self.loss_values[backward] = root.detach().clone()
            for rule in self.rules:
                rule.going_backward(backward, root)

    def ended_backward(self, backward: Backward) -> None:
        """It has gone backward, or raised."""
        for number in self.leaves.members(backward.arrived if backward.accumulates else 0):
            self.contributions.setdefault(number, []).append(backward)
            self._reads[number] = self.flow.notes.num_reads[number]

    def updated(self, update: Update) -> None:
        """An optimizer has stepped, or a scaler skipped it; what is computed from now on is the next step's."""
        self.flow.step = self.step.index + 1
        self.step.updates.append(update)
        self._consume(update)

    def wrote(self, number: int, line: Line | None) -> None:
        """The program wrote to a leaf itself: with a gradient that no optimizer will read, that is an update."""
        tensor = self.leaves.all[number].tensor
        if tensor.grad is None or number not in self.contributions:
            return
        if self.leaves.all[number].is_held:
            return
        with self.unseen():
            if line not in self._by_hand:
                self._by_hand[line] = self.procedure.use_of(ByHand([tensor]), line)
                self.leaves.all[number].is_held = False  # by no real optimizer
            use = self._by_hand[line]
            held = use.optimizer.param_groups[0]["params"]
            if not any(other is tensor for other in held):
                held.append(tensor)
            update = next((update for update in self.step.updates if update.use is use), None)
            if update is None:
                update = Update(use, line)
                self.step.updates.append(update)
                self.flow.step = self.step.index + 1
            update.gradients[number], update.moved[number] = gradient_state(tensor), True

    def cleared(self, parameters: list[Tensor], line: Line | None, to_none: bool) -> None:
        """Gradients are about to be cleared."""
        self._close_updated()
        numbers = discarded = 0
        lines: set[Line | None] = set()
        for parameter in parameters:
            number = self.leaves.number(parameter)
            if number >= 0:
                numbers |= 1 << number
                contributions = self.contributions.pop(number, ())
                if self.flow.notes.num_reads[number] > self._reads.get(number, 0):
                    continue  # the program took the gradient itself, as those do that weigh several against each other
                unread = [backward for backward in contributions if not self._was_consumed(number, backward)]
                discarded |= bool(unread) << number
                lines |= {backward.line for backward in unread}
        self.step.clearings.append(
            Clearing(numbers, line, to_none, discarded, len(self.step.backwards), frozenset(lines))
        )

    def clipped(self, gradients: list[Tensor], line: Line | None) -> None:
        """Tensors were clipped in place; gradients among them count."""
        pointers = {gradient.data_ptr() for gradient in gradients if has_values(gradient)}
        numbers = 0
        with self.unseen():
            for number, leaf in enumerate(self.leaves.all):
                gradient = leaf.tensor.grad
                if gradient is not None and has_values(gradient) and gradient.data_ptr() in pointers:
                    numbers |= 1 << number
        if not numbers:
            return
        holders = [use for use in self.procedure.optimizers.values() if self._holds(use.optimizer, numbers)]
        scaled = any(b.scaled for n in self.leaves.members(numbers) for b in self.contributions.get(n, ()))
        scaled = scaled and bool(holders) and not all(use.unscaled for use in holders)
        self.step.clippings.append(Clipping(line, scaled, numbers))

    def scaler_updated(self, scaler: int, line: Line | None) -> None:
        """A gradient scaler has chosen its next scale."""
        self._scaler_updates.append((scaler, line))
        self.step.scaler_updates = list(self._scaler_updates)

    # --- what the rules ask

    @property
    def num_steps(self) -> int:
        """Steps that ended with an update."""
        return sum(phase.num_steps for phase in self.phases.values())

    def held(self) -> dict[int, list[Optimizer]]:
        """By leaf: the optimizers that hold it."""
        holders: dict[int, list[Optimizer]] = {}
        for use in self.procedure.optimizers.values():
            for group in use.optimizer.param_groups:
                for tensor in group["params"]:
                    holders.setdefault(self.leaves.add(tensor), []).append(use.optimizer)
        return holders

    def intended(self, step: Step) -> int:
        """The leaves that should learn in a step: what its optimizers hold, and what was declared and is in none."""
        numbers = 0
        for update in step.updates:
            for number in update.gradients:
                numbers |= 1 << number
        if not step.updates and step.backwards and step.error is not None:
            for number in self.held():
                numbers |= 1 << number
        held = self.held()
        for number, leaf in enumerate(self.leaves.all):
            if number not in held and self.intent.should_learn(self.names.leaf(leaf)):
                numbers |= 1 << number
        return numbers & ~self.frozen()

    def frozen(self) -> int:
        """The leaves that do not require a gradient now."""
        return sum(1 << number for number, leaf in enumerate(self.leaves.all) if not leaf.tensor.requires_grad)

    def leaf(self, number: int) -> Leaf:
        """A leaf by its number."""
        return self.leaves.all[number]

    # --- steps

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            self.names.refresh()
            for rule in self.rules:
                rule.began()

    def _close_updated(self) -> None:
        if self.step.updates:
            self._close(None)

    def _close(self, error: BaseException | None) -> None:
        step, flow = self.step, self.flow
        step.error = error
        step.modules, step.root_calls = flow.modules.by_id, flow.modules.root_calls
        step.draws = flow.notes.draws
        step.escapes = list(flow.notes.escapes.values())
        step.changes = flow.notes.changes
        self.last_changes = step.changes
        with self.unseen():
            self.names.refresh()
            for update in step.updates:
                if isinstance(update.use.optimizer, ByHand):
                    update.use.num_updates += 1
                    self._consume(update)
            if step.updates:
                optimizers = tuple(dict.fromkeys(id(update.use.optimizer) for update in step.updates))
                lines = tuple(dict.fromkeys(backward.line for backward in step.backwards))
                self.phases.setdefault((optimizers, lines), Tally()).add(step)
            for rule in self.rules:
                rule.observe(step)
            flow.end_step()
        self.loss_values.clear()
        self.step, self._begun = Step(step.index + 1), False
        flow.step = self.step.index
        if self._enough is not None and error is None:
            self._enough(self)

    def _consume(self, update: Update) -> None:
        """Let the rules see whose gradients an update reads, and note that it has read them."""
        for rule in self.rules:
            rule.updated(update)
        for number in update.gradients:
            seen = self.consumed.setdefault((number, id(update.use.optimizer)), set())
            seen.update(self.contributions.get(number, ()))

    def _drop_cleared(self) -> None:
        for number in list(self.contributions):
            gradient = self.leaves.all[number].tensor.grad
            if gradient is None or (has_values(gradient) and not gradient.any()):
                del self.contributions[number]

    def _was_consumed(self, number: int, backward: Backward) -> bool:
        return any(backward in self.consumed.get((number, optimizer), ()) for optimizer in self.procedure.optimizers)

    def _holds(self, optimizer: Optimizer, numbers: int) -> bool:
        tensors = (tensor for group in optimizer.param_groups for tensor in group["params"])
        return any(numbers >> number & 1 for number in map(self.leaves.number, tensors) if number >= 0)
