"""FL111-FL112, FL115: which term of a loss trains what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from frostline.gradflow.blame import cause_of, find_cut, find_vanishing
from frostline.gradflow.intent import matches
from frostline.gradflow.names import describe, find_tensor_names
from frostline.gradflow.rule import Rule, place, place_of, write
from frostline.gradflow.step import Step
from frostline.records import Finding, TermFlow
from frostline.tracing import Backward, Event, Root, has_values

if TYPE_CHECKING:
    from frostline.gradflow.session import Session

_ADDS = ("add", "__radd__", "add_", "__iadd__", "sub", "__rsub__", "sub_", "rsub", "__isub__")
_GATHERS = ("sum", "mean", "stack", "cat")
_MOST_STEPS = 2
_MOST_TERMS = 16  # each is one more backward


@dataclass(slots=True, eq=False)
class Term:
    """One term of a loss.

    Attributes:
        name: What the program calls it, or the operator that makes it.
        event: What made it.
        influence: Leaves its value depends on.
        reach: Leaves autograd gets to from it.
        vanishing: Events where its whole gradient becomes zero, by code.
    """

    name: str
    event: Event
    influence: int
    reach: int
    vanishing: dict[str, tuple[Event, ...]] = field(default_factory=dict)


class Terms(Rule):
    """Splits each loss into the terms it is a sum of, and follows each alone."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._terms: dict[tuple[str, object], Term] = {}
        self._given: dict[int, tuple[str, Tensor]] = {}
        self._meant: dict[str, int] = {}

    def name(self, terms: Mapping[str, Tensor]) -> None:
        """Take the names the user gives to terms of the next loss."""
        for name, tensor in terms.items():
            self._given[id(tensor)] = name, tensor

    def going_backward(self, backward: Backward, root: Tensor | None) -> None:
        """Split the loss while its terms are alive."""
        if self.session.num_steps >= _MOST_STEPS * max(1, len(self.session.phases)) or not backward.accumulates:
            return
        terms = self._split(backward)
        if len(terms) < 2 and not self.intent.flow:
            return
        for term in terms:
            known = self._terms.setdefault((term.name, term.event.line), term)
            known.reach |= term.reach
            known.influence |= term.influence
            if 1 < len(terms) <= _MOST_TERMS and term.reach:
                self._try_alone(known, term)

    def observe(self, step: Step) -> None:
        """Remember what should learn."""
        self._given.clear()
        for update in step.updates:
            for number in update.gradients:
                self._meant[self.names.leaf(self.leaves.all[number])] = number

    def _split(self, backward: Backward) -> list[Term]:
        events = [root.event for root in backward.roots if root.event is not None]
        found: list[tuple[Event, int]] = []
        wanted: dict[int, Event] = {}
        for event in events:
            _scalars(event, wanted)
        tensors = {id(t): e for e in wanted.values() if e.result is not None and (t := e.result()) is not None}
        names = {id(tensors[key]): name for key, (name, _) in self._given.items() if key in tensors}
        for key, name in find_tensor_names(set(tensors)).items():
            names.setdefault(id(tensors[key]), name)
        for event in events:
            found += _addends(event, names)
        terms = []
        for event, reach in found:
            text = names.get(id(event)) or event.op.rpartition(".")[2]
            terms.append(Term(text, event, event.influence, reach))
        return terms

    def _try_alone(self, known: Term, term: Term) -> None:
        """Go backward from one term alone, to see whether anything arrives."""
        tensor = None if term.event.result is None else term.event.result()
        if tensor is None or tensor.grad_fn is None or not has_values(tensor) or self._would_be_noticed(tensor):
            return
        numbers = list(self.leaves.members(term.reach))
        gradients, alone = self.session.flow.backwards.gradients_of(tensor, numbers)
        arrived = [(n, g) for n, g in zip(numbers, gradients, strict=True) if g is not None]
        if not arrived or any(bool(g.any()) for _, g in arrived):
            known.vanishing.clear()
            return
        found = find_vanishing(alone, [term.event], arrived[0][0], "zero")
        if found.kind in ("no derivative", "cancelled", "one element"):
            known.vanishing["FL114" if found.kind == "no derivative" else "FL115"] = found.events

    def _would_be_noticed(self, tensor: Tensor) -> bool:
        """Whether one more backward would run the program's own functions and hooks, or move statistics."""
        if self.session.flow.notes.hooked or any(leaf.tensor._backward_hooks for leaf in self.leaves.all):
            return True
        seen: set[Any] = set()
        stack: list[Any] = [tensor.grad_fn]
        while stack:
            node = stack.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if isinstance(node, BackwardCFunction):  # module hooks and reentrant checkpoints are such functions too
                return True
            stack += [child for child, _ in node.next_functions]
        modules = self.session.flow.modules.by_id.values()
        return any(call.checkpoint for use in modules for call in use.calls)  # its statistics would move

    # --- conclusions

    def table(self) -> tuple[TermFlow, ...]:
        """What each term trains."""
        rows = []
        for term in self._terms.values():
            modules: dict[str, int] = {}
            for number in self.leaves.members(self._learners()):
                name = self.names.leaf(self.leaves.all[number])
                module = _module(name)
                modules[module] = modules.get(module, 0) + (term.reach >> number & 1)
            rows.append(TermFlow(term=term.name, line=str(term.event.line or ""), modules=modules))
        return tuple(rows)

    def findings(self) -> Iterator[Finding]:
        """Terms that train nothing, or other things than they were declared to."""
        for term in self._terms.values():
            learners = self._learners()
            if term.influence & learners and not term.reach & learners and not _is_constant(term.event):
                if not (term.reach and self._is_recomputed(term, learners)):
                    yield self._dead(term, learners)
            for code, events in term.vanishing.items():
                names = self.leaf_names(self.leaves.members(term.reach & learners))
                yield write(
                    code,
                    f"loss term {term.name!r} has a gradient of exactly 0",
                    [*(place_of("vanishes", event) for event in events[:4]), place("term", term.event.line, term.name)],
                    evidence="alone, it moves nothing it reaches",
                    parameters=names,
                )
            declared = self.intent.flow.get(term.name)
            if declared is not None:
                yield from self._mismatch(term, declared, learners)

    def _is_recomputed(self, term: Term, learners: int) -> bool:
        """Whether a reentrant checkpoint, which goes backward on its own, stands between the term and all it trains."""
        numbers = self.leaves.members(term.influence & learners)
        cuts = [find_cut([Root(term.event, term.influence, term.reach, ())], number).events for number in numbers]
        return all(e.context is not None and e.context.kind == "checkpoint" for events in cuts for e in events)

    def _dead(self, term: Term, learners: int) -> Finding:
        number = next(self.leaves.members(term.influence & learners))
        cut = find_cut([Root(term.event, term.influence, term.reach, ())], number)
        names = self.leaf_names(self.leaves.members(term.influence & learners))
        code = {cause_of(event) for event in cut.events}
        return write(
            "FL111",
            f"loss term {term.name!r} trains nothing: it depends on {describe(names)}, and its graph does not",
            [
                *(place_of("cut", event) for event in cut.events[:4]),
                *(place("switched off", e.context.line) for e in cut.events[:4] if e.context is not None),
                place("term", term.event.line, term.name),
            ],
            evidence=f"cut as in {', '.join(sorted(code))}" if code else "",
            parameters=names,
        )

    def _mismatch(self, term: Term, declared: tuple[str, ...], learners: int) -> Iterator[Finding]:
        names = {number: self.names.leaf(self.leaves.all[number]) for number in self.leaves.members(learners)}
        wanted = {number for number, name in names.items() if matches(name, declared)}
        reached = {number for number in names if term.reach >> number & 1}
        if wanted == reached:
            return
        missing, extra = self.leaf_names(wanted - reached), self.leaf_names(reached - wanted)
        texts = [f"does not train {describe(missing)}"] if missing else []
        texts += [f"trains {describe(extra)}"] if extra else []
        joins = [_joint(term.event, number) for number in sorted(reached - wanted)[:2]]
        cuts = [
            event
            for number in sorted(wanted - reached)[:2]
            for event in find_cut([Root(term.event, term.influence, term.reach, ())], number).events
        ]
        yield write(
            "FL112",
            f"loss term {term.name!r} {' and '.join(texts)}",
            [
                place("term", term.event.line, term.name),
                *(place_of("lets through", event) for event in joins if event is not None),
                *(place_of("cut", event) for event in cuts[:3]),
            ],
            evidence=f"declared: {', '.join(declared)}",
            parameters=(*missing, *extra),
        )

    def _learners(self) -> int:
        meant = sum(1 << number for number in set(self._meant.values()))
        return meant or sum(1 << number for number in self.session.held())


def _scalars(event: Event, found: dict[int, Event]) -> None:
    stack = [event]
    while stack:
        current = stack.pop()
        if id(current) not in found and (current.scalar or current is event):
            found[id(current)] = current
            stack += [s.event for s in current.sources if s.event is not None]
            stack += [
                deep.event
                for s in current.sources
                if s.event is not None and s.event.op.rpartition(".")[2] in _GATHERS
                for deep in s.event.sources
                if deep.event is not None
            ]


def _addends(root: Event, names: dict[int, str]) -> list[tuple[Event, int]]:
    """The terms a loss is a sum of, each with what autograd reached from it when it was added."""
    found: dict[int, list[tuple[Event, int]]] = {}
    stack = [root]
    while stack:  # a loss can be a sum over more steps of a sequence than Python recurses
        event = stack[-1]
        parts, is_sum = ([], False) if id(event) in names and event is not root else _parts(event)
        waiting = [part for part in parts if id(part) not in found]
        if waiting:
            stack += waiting
            continue
        stack.pop()
        terms = [term for part in parts for term in found[id(part)]]
        split = is_sum or len(terms) > 1 or any(id(term) in names for term, _ in terms)
        found[id(event)] = terms if parts and split else [(event, event.reach)]
    return found[id(root)]


def _parts(event: Event) -> tuple[list[Event], bool]:
    """What a scalar is made of, as far as it is a sum, and whether it is one of several."""
    op = event.op.rpartition(".")[2]
    inner = [source for source in event.sources if source.event is not None]
    is_sum = op in _ADDS and len(inner) > 1
    if op in ("sum", "mean") and len(inner) == 1:
        stacked = inner[0].event
        if stacked is not None and stacked.op.rpartition(".")[2] in ("stack", "cat"):
            scalars = [source for source in stacked.sources if source.event is not None and source.event.scalar]
            is_sum, inner = len(scalars) > 1, scalars or inner
    passes = len(inner) == 1 and event.scalar and inner[0].event is not None and inner[0].event.scalar
    if is_sum or (passes and _passes_on(op)):
        return [source.event for source in inner if source.event is not None], is_sum
    return [], False


def _passes_on(op: str) -> bool:
    return op in (*_ADDS, "mul", "__rmul__", "div", "true_divide", "neg", "float", "to", "squeeze", "mul_", "div_")


def _joint(event: Event, number: int) -> Event | None:
    """Where a parameter's flow meets what else a term is made of: the operator nearest to the parameter that mixes."""
    bit = 1 << number
    best: Event | None = None
    seen: set[int] = set()
    stack = [event]
    while stack:
        current = stack.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        reaching = [source for source in current.sources if source.reach & bit]
        if reaching and (best is None or current.index < best.index) and current.module is None:
            best = current
        stack += [source.event for source in reaching if source.event is not None]
    return best


def _is_constant(event: Event) -> bool:
    """Whether the term was made a constant on purpose: a scalar that was detached."""
    current: Event | None = event
    while current is not None and current.scalar:
        if current.kind in ("detach", "data"):
            return True
        current = next((source.event for source in current.sources if source.event is not None), None)
    return False


def _module(name: str) -> str:
    return name.rpartition(".")[0] or name
