"""FL501-FL511, FL216: memory and work paid for nothing, in bytes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING
from weakref import ref

import torch
from torch import Tensor

from frostline.gradflow.names import describe
from frostline.gradflow.parts import Parts
from frostline.gradflow.rule import Rule, place, write
from frostline.gradflow.step import Step, ancestors_of
from frostline.records import Finding, Place
from frostline.tracing import Backward, RootCall, has_values
from frostline.units import format_bytes
from frostline.where import Line

if TYPE_CHECKING:
    from frostline.gradflow.session import Session

_MANY_LOSSES = 3  # a loop's variable still holds the last step's loss, or two


class Waste(Rule):
    """Looks for gradients nobody reads, graphs nobody goes back through, and habits that cost."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._arrived = 0
        self._discarded: dict[Line | None, int] = {}
        self._emptied: dict[Line | None, int] = {}
        self._calls: list[RootCall] = []
        self._losses: list[tuple[int, ref[Tensor], Line | None]] = []
        self._chained: dict[Line, int] = {}
        self._retained: dict[Line | None, tuple[int, set[int]]] = {}
        self._reused: set[Line | None] = set()
        self._anomaly: Line | None = None
        self._unreleased: set[Line | None] = set()
        self._alone: set[Line | None] = set()
        self._num_steps = 0

    def going_backward(self, backward: Backward, root: Tensor | None) -> None:
        """Note what the backward finds: anomaly mode, a retained graph, a chain of old losses."""
        if torch.is_anomaly_enabled():
            self._anomaly = backward.line
        ancestors = {event.index for event in ancestors_of([backward], through_cuts=False)}
        for line, (_, events) in self._retained.items():
            if events & ancestors:
                self._reused.add(line)
        if backward.retains:
            self._retained[backward.line] = backward.step, ancestors
        if root is not None:
            self._losses.append((backward.step, ref(root), backward.line))

    def observe(self, step: Step) -> None:
        """Note what was computed and not used."""
        self._arrived |= step.arrived
        self._num_steps += bool(step.updates)
        for clearing in step.clearings:
            if not clearing.to_none:
                self._unreleased.add(clearing.line)
            later = {backward.line for backward in step.backwards[clearing.num_backwards :]}
            between = clearing.num_backwards and clearing.lines & later
            if between and step.updates and not any(update.has_closure for update in step.updates):
                self._emptied[clearing.line] = len(step.backwards)
            elif clearing.discarded:
                self._discarded[clearing.line] = self._discarded.get(clearing.line, 0) | clearing.discarded
        if step.backwards and not step.updates and step.error is None:
            self._alone |= {backward.line for backward in step.backwards if backward.accumulates}
        self._look_for_chains(step)
        self._look_for_graphs(step)

    def _look_for_chains(self, step: Step) -> None:
        self._chained = dict(self.session.flow.notes.chains)
        if step.updates:
            self._losses = [known for known in self._losses if known[1]() is not None]

    def _look_for_graphs(self, step: Step) -> None:
        self._calls += [call for call in step.root_calls if any(event.reach for event in call.outputs)]
        self._calls = [call for call in self._calls if step.connected.isdisjoint(call.outputs)]

    # --- conclusions

    def findings(self) -> Iterator[Finding]:
        """Everything paid for nothing."""
        yield from self._gradients()
        yield from self._graphs()
        yield from self._inputs()
        yield from self._habits()

    def _gradients(self) -> Iterator[Finding]:
        held = self.session.held()
        groups: dict[tuple[Place, ...], list[int]] = defaultdict(list)
        for number in self.leaves.members(self._arrived):
            leaf = self.leaves.all[number]
            wasted = number not in held and self.names.is_registered(leaf.tensor)
            learns = self.intent.should_learn(self.names.leaf(leaf))
            if wasted and not learns and not self.session.flow.notes.num_reads[number]:
                made = self.session.procedure.made_at.get(id(leaf.tensor))
                places = (place("made", made[1] if made else None), place("used", leaf.used_at or leaf.line))
                groups[tuple(known for known in places if known is not None)].append(number)
        if groups:
            numbers = [number for group in groups.values() for number in group]
            num_bytes = sum(_num_bytes(self.leaves.all[number].tensor) for number in numbers)
            names = self.leaf_names(numbers)
            is_meant = any(self.intent.should_stay(name) for name in names)
            yield write(
                "FL501",
                f"{describe(names)} gets gradients that no optimizer steps and nobody reads",
                [known for places in groups for known in places][:4],
                evidence=f"{format_bytes(num_bytes)} of gradients"
                + ("" if is_meant else "; whether it should learn is not known: declare `learn` or `stay`"),
                parameters=names,
                num_bytes=num_bytes,
            )
        for line, bits in self._discarded.items():
            numbers = list(self.leaves.members(bits))
            names = self.leaf_names(numbers)
            num_bytes = sum(_num_bytes(self.leaves.all[number].tensor) for number in numbers)
            what = f"gradients of {describe(names)} are cleared before any optimizer reads them"
            yield write("FL502", what, [place("cleared", line)], parameters=names, num_bytes=num_bytes)
        for line, number in self._emptied.items():
            what = f"of {number} micro-batches only the last counts: gradients are cleared between their backwards"
            so, do = "the step follows a fraction of the batch", "call zero_grad() once, after step()"
            yield write("FL502", what, [place("cleared", line)], level="fault", so=so, do=do)
        for line in self._alone:
            yield write("FL216", "no optimizer steps after this backward", [place("backward", line)])

    def _graphs(self) -> Iterator[Finding]:
        for line, module in {call.line: call.module for call in self._calls}.items():
            what = f"'{self.names.module(module)}' records a graph here that no backward uses"
            yield write("FL503", what, [place("forward", line)])
        for line, count in self._chained.items():
            what = "a value with a graph is carried from step to step"
            evidence = f"the graphs of {count + 1} steps hang together"
            yield write("FL504", what, [place("carried", line)], evidence=evidence)
        kept = Counter(line for _, loss, line in self._losses if _keeps_graph(loss))
        for line, count in kept.items():
            if count >= _MANY_LOSSES and not self._chained:
                what = f"{count} losses of earlier steps are kept with their graphs"
                yield write("FL504", what, [place("backward", line)])
        for line in self._retained:
            if line not in self._reused:
                what = "retain_graph=True, and nothing goes backward through it again"
                yield write("FL504", what, [place("backward", line, "retain_graph=True")])

    def _inputs(self) -> Iterator[Finding]:
        parts, saved = Parts(self, set()), Counter[Line]()
        for (line, module), num_bytes in self.session.flow.notes.saved_inputs.items():
            if module is None or parts.is_frozen(module):  # a discriminator only stands still for a while
                saved[line] += num_bytes
        if saved:
            num_bytes = saved.total()
            lines = [line for line, _ in saved.most_common(4)]
            what = f"frozen convolutions and BatchNorms keep {format_bytes(num_bytes)} of inputs for backward"
            yield write("FL505", what, [place("saves", line) for line in lines], num_bytes=num_bytes)

    def _habits(self) -> Iterator[Finding]:
        for line in sorted(self.session.flow.switches.bare):
            what = "torch.no_grad() is called, and not entered: it switches nothing off"
            yield write("FL506", what, [place("called", line)])
        if self._anomaly is not None:
            switched = place("switched on", self.session.procedure.anomaly_at)
            yield write("FL507", "anomaly detection is on", [switched, place("backward", self._anomaly)])
        for (what, line), count in self.session.procedure.collected.items():
            if count >= max(2, self._num_steps):
                yield write(
                    "FL508", f"{what} is called {count} times in {self._num_steps} steps", [place("called", line)]
                )
        for cleared in self._unreleased:
            yield write(
                "FL509", "zero_grad(set_to_none=False) keeps all gradients allocated", [place("cleared", cleared)]
            )
        for line in sorted(self.session.flow.notes.unpinned):
            yield write("FL510", "non_blocking=True from memory that is not pinned", [place("copied", line)])
        for value, line in self.session.procedure.defaults.items():
            yield write("FL511", f"the default for new tensors becomes {value}", [place("set", line)])


def _keeps_graph(loss: ref[Tensor]) -> bool:
    tensor = loss()
    return tensor is not None and tensor.grad_fn is not None and has_values(tensor)


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
