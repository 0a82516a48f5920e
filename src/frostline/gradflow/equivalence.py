"""FL307-FL310, FL212: savings that change numbers: recomputation, writes to saved tensors, micro-batches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from frostline.gradflow.rule import Rule, place, write
from frostline.gradflow.step import Step
from frostline.records import Finding, Place
from frostline.tracing import Backward, Change, Draw, Event, Update
from frostline.where import Line

if TYPE_CHECKING:
    from frostline.gradflow.session import Session


class Equivalence(Rule):
    """Watches random numbers, statistics and versions through recomputation, and sums of micro-batches."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._other_numbers: set[tuple[Place, ...]] = set()
        self._twice: dict[tuple[Place, ...], set[str]] = defaultdict(set)
        self._overwritten: set[tuple[Place, ...]] = set()
        self._last_updates: list[Update] = []
        self._sums: dict[tuple[Line | None, Line | None], int] = {}

    def going_backward(self, backward: Backward, root: Tensor | None) -> None:
        """Look for tensors that were saved for this backward and written since through `.data`."""
        hidden = [change for change in self.session.flow.notes.changes if change.through_data]
        if hidden and root is not None and root.grad_fn is not None:
            for line in _overwritten(root.grad_fn, hidden):
                found = place("written", line, "through .data")
                self._overwritten.add((found,) if found else ())

    def observe(self, step: Step) -> None:
        """Compare what was recomputed with what was computed."""
        self._look_at_draws(step)
        self._last_updates += step.updates
        for use in step.modules.values():
            if isinstance(use.module, _BatchNorm) and use.module.track_running_stats and use.module.momentum != 0:
                again = any(call.recomputing for call in use.calls)
                first = [call for call in use.calls if not call.recomputing and call.checkpoint is not None]
                if again:
                    lines = place("checkpoint", first[0].checkpoint if first else None, "recomputes it")
                    self._twice[(lines,) if lines else ()].add(self.names.module(use.module))
        self._look_at_sums(step)

    def _look_at_draws(self, step: Step) -> None:
        states: dict[tuple[Any, ...], list[Draw]] = defaultdict(list)
        for draw in step.draws:
            if not draw.recomputing:
                states[draw.op, draw.line].append(draw)
                states[draw.op, id(draw.module)].append(draw)
        for draw in step.draws:
            key = draw.line if draw.module is None else id(draw.module)  # a checkpointed function may be no module
            first = [other for other in states.get((draw.op, key), ()) if other.checkpoint is not None]
            if draw.recomputing and draw.state is not None and first:
                if all(draw.state != other.state for other in first):
                    places = (
                        place("checkpoint", first[0].checkpoint, "recomputes it"),
                        place("draws", first[0].line, draw.op.rpartition(".")[2]),
                    )
                    self._other_numbers.add(tuple(p for p in places if p is not None))

    def _look_at_sums(self, step: Step) -> None:
        by_line: dict[Line | None, list[Backward]] = defaultdict(list)
        cleared = max((clearing.num_backwards for clearing in step.clearings), default=0)
        for backward in step.backwards[cleared:]:
            if backward.accumulates and backward.error is None:
                by_line[backward.line].append(backward)
        for line, backwards in by_line.items():
            events = [backward.roots[0].event for backward in backwards if backward.roots]
            first = events[0] if events else None
            if len(events) < 2 or first is None or not step.updates:
                continue
            if any(event is None or event.line != first.line for event in events):
                continue
            if any(abs(factor * len(events) - 1) < 0.5 for factor in _factors(first)) or _sums_itself(first):
                continue
            self._sums[line, first.line] = len(events)

    def findings(self) -> Iterator[Finding]:
        """Each saving that changes numbers."""
        for places in self._other_numbers:
            yield write("FL307", "an activation checkpoint recomputes with other random numbers", places)
        for places, names in self._twice.items():
            what = f"'{sorted(names)[0]}' updates its running statistics twice a step"
            evidence = "once in forward, once when the checkpoint recomputes it"
            yield write("FL308", what, places, evidence=evidence, parameters=sorted(names))
        for places in self._overwritten:
            yield write("FL309", "a tensor that backward needs was changed through .data", places)
        yield from self._failures()
        for (line, made), number in self._sums.items():
            places_of = [place("backward", line, "adds up"), place("loss", made)]
            yield write(
                "FL212",
                f"{number} micro-batches are added up, and their losses are not divided by {number}",
                places_of,
                evidence="whether the loss is a sum over samples is not known",
            )

    def _failures(self) -> Iterator[Finding]:
        error = self.session.error
        if error is None or "modified by an inplace operation" not in str(error):
            return
        shape = str(error).partition("[torch.")[2].partition(" [")[2].partition("]")[0]
        stepped = [
            update
            for update in self._last_updates
            if any(shape in _shapes(self.leaves.all[n].tensor) for n in update.gradients)
        ]
        backward = self.session.last_backward
        steps = [change for change in self.session.last_changes if str(list(change.tensor.shape))[1:-1] == shape]
        line = steps[-1].line if steps else None
        yield write(
            "FL310",
            f"a tensor of shape [{shape}] that backward needs was written in place",
            [
                place("written", line, "in place"),
                *(place("step", update.line, "moves parameters in place") for update in stepped[-1:] if not steps),
                place("backward", backward.line if backward else None, "needs the values before"),
            ],
            evidence=str(error).partition(". Hint")[0].splitlines()[0],
            do="step after the backward that needs the old values" if stepped and not steps else "",
        )


def _shapes(parameter: Tensor) -> tuple[str, str]:
    """A parameter's shape as torch prints it, and that of its transpose, which a linear layer saves."""
    sizes = [str(size) for size in parameter.shape]
    return ", ".join(sizes), ", ".join(reversed(sizes))


def _overwritten(root: Any, changes: list[Change]) -> Iterator[Line | None]:
    """Lines that wrote to a tensor the graph has saved, after it was saved."""
    pointers = {change.tensor.untyped_storage().data_ptr(): change for change in changes}
    seen, stack = set(), [root]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for name in dir(node):
            if name.startswith("_saved_"):
                try:
                    saved = getattr(node, name)
                except RuntimeError:
                    continue  # released, or written to in the open: autograd says so itself
                if isinstance(saved, Tensor) and saved.layout is torch.strided:
                    change = pointers.get(saved.untyped_storage().data_ptr())
                    if change is not None and node._sequence_nr() < change.sequence:
                        yield change.line
        stack += [child for child, _ in node.next_functions]


def _factors(event: Event) -> list[float]:
    """The plain numbers a loss was multiplied by, on its way to backward, each and all together."""
    found, product = [], 1.0
    current: Event | None = event
    while current is not None and current.scalar:
        if current.factor is not None:
            product *= current.factor
            found += [current.factor, product]
        influenced = [source.event for source in current.sources if source.event is not None]
        current = influenced[0] if influenced else None
    return found


def _sums_itself(event: Event) -> bool:
    """Whether the loss's last reduction is a plain sum, whose micro-batches add up to the whole batch."""
    current: Event | None = event
    while current is not None and current.scalar:
        if current.sums:
            return True
        influenced = [source.event for source in current.sources if source.event is not None]
        current = influenced[0] if influenced else None
    return False
