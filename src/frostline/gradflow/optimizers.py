"""FL201-FL211: what the optimizers hold against what the losses use, and whether a step can move anything."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.optim import Optimizer

from frostline.gradflow.names import describe, find_tensor_names
from frostline.gradflow.rule import Rule, place, write
from frostline.gradflow.step import Clearing, Step
from frostline.records import Finding, Place
from frostline.tracing import Backward, Leaf, OptimizerUse, Update
from frostline.where import Line

if TYPE_CHECKING:
    from frostline.gradflow.session import Session

_RATE = "its learning rate is 0"
_NONE = "no gradient arrived"
_ZERO = "every gradient is exactly 0"
_CLEARED = "its gradients were cleared between backward and step"
_SMALL = "the update is too small for the parameters' precision"
_REMEDIES = {
    _RATE: "set lr, or look at what sets it to 0",
    _NONE: "call backward() before step(), on a loss that depends on what it holds",
    _ZERO: "look for a factor of 0: two matrices that are both initialised to 0, a loss weight of 0",
    _CLEARED: "the order is zero_grad, backward, step",
    _SMALL: "keep the parameters in float32 (autocast computes in half precision), or raise the learning rate",
}


class Optimizers(Rule):
    """Follows who holds which parameter, which gradients each update reads, and what moves.

    Args:
        session: The audit.
        explained: Parameters another rule has explained already, as a set of leaf numbers.
    """

    def __init__(self, session: Session, explained: Callable[[], int]) -> None:
        super().__init__(session)
        self._explained = explained
        self._influenced = 0
        self._arrived = 0
        self._num_steps = 0
        self._moved_unread: set[int] = set()
        self._uncleared: dict[int, tuple[Backward, Update]] = {}
        self._leaked: dict[int, tuple[Backward, Update]] = {}
        self._leaks_seen: dict[int, Step] = {}
        self._idle: dict[int, list[tuple[str, Update, Clearing | None]]] = defaultdict(list)
        self._working: set[int] = set()
        self._touched: dict[int, set[int]] = defaultdict(set)
        self._trained: dict[int, set[int]] = defaultdict(set)
        self._targets = 0
        self._discarded = 0
        self._cleared_at: Line | None = None
        self._results: dict[int, str] = {}
        self._held_elsewhere: set[int] = set()

    def updated(self, update: Update) -> None:
        """Look at the gradients an update reads: whose are they?"""
        session, optimizer = self.session, id(update.use.optimizer)
        lines = {backward.line for backward in session.step.backwards}
        self._trained[optimizer] |= {n for n in update.gradients if self.leaves.all[n].tensor.requires_grad}
        for number in update.gradients:
            consumed = session.consumed.get((number, optimizer), set())
            for backward in session.contributions.get(number, ()):
                if backward in consumed:
                    self._uncleared.setdefault(number, (backward, update))
                elif backward.step != session.step.index and backward.line not in lines and session.step.backwards:
                    self._leaked.setdefault(number, (backward, update))
                    self._leaks_seen.setdefault(number, session.step)

    def observe(self, step: Step) -> None:
        """Note what was used, what moved, and which updates could do nothing."""
        self._influenced |= step.influence
        self._arrived |= step.arrived
        self._num_steps += bool(step.updates)
        for backward in step.backwards:
            self._targets |= backward.targets or 0
        self._look_for_results(step)
        self._look_for_variables()
        for clearing in step.clearings:
            self._discarded |= clearing.discarded
            self._cleared_at = clearing.line if clearing.discarded else self._cleared_at
        for update in step.updates:
            self._look_at_update(update, step)

    def _look_for_variables(self) -> None:
        """Note tensors that an optimizer holds, no loss has used and no module has, and that a variable still holds."""
        loose = {}
        for number in self.session.held():
            tensor = self.leaves.all[number].tensor
            if not self._influenced >> number & 1 and number not in self._held_elsewhere:
                if not self.names.tensor(tensor):
                    loose[id(tensor)] = number
        if loose:
            self._held_elsewhere |= {loose[key] for key in find_tensor_names(set(loose))}

    def _look_at_update(self, update: Update, step: Step) -> None:
        optimizer = id(update.use.optimizer)
        for number, moved in update.moved.items():
            if moved:
                self._touched[optimizer].add(number)
                if update.gradients[number] == "zero" and not step.influence >> number & 1:
                    self._moved_unread.add(number)
        if not step.backwards:
            return
        why = self._idle_because(update, step)
        if why is None:
            self._working.add(optimizer)
        else:
            clearing = next((c for c in step.clearings if c.discarded), None)
            self._idle[optimizer].append((why, update, clearing))

    def _idle_because(self, update: Update, step: Step) -> str | None:
        """Why an update can move nothing, or None where it can."""
        if update.skipped:
            return "skipped by the gradient scaler"
        if update.has_closure and any(update.moved.values()):
            return None
        states = set(update.gradients.values())
        if states <= {"none", "zero"}:
            if any(clearing.discarded for clearing in step.clearings):
                return _CLEARED
            return _ZERO if "zero" in states else _NONE
        if update.moved and not any(update.moved.values()):
            if update.rates and not any(update.rates):
                return _RATE
            if "nonfinite" not in states:
                return _SMALL
        return None

    # --- conclusions

    def findings(self) -> Iterator[Finding]:
        """All that is wrong between optimizers and parameters."""
        held = self.session.held()
        yield from self._memberships(held)
        yield from self._contents(held)
        yield from self._order()
        yield from self._motion(held)
        yield from self._unused(held)

    def _memberships(self, held: dict[int, list[Optimizer]]) -> Iterator[Finding]:
        groups: dict[tuple[str, tuple[Place, ...]], list[int]] = defaultdict(list)
        for number, leaf in enumerate(self.leaves.all):
            if number in held or not leaf.tensor.requires_grad or not self._arrived >> number & 1:
                continue
            code = self._outside(number, leaf)
            if code:
                groups[code, self._places(leaf)].append(number)
        for (code, places), numbers in groups.items():
            names = self.leaf_names(numbers)
            if code == "FL206":
                names = tuple(sorted(self._results[number] for number in numbers))
            what = {
                "FL201": f"{describe(names)} gets a gradient and is in no optimizer",
                "FL205": f"{describe(names)} trains, and is in no module and no optimizer",
                "FL206": f"{describe(names)} is not a leaf: its gradient goes to a tensor nobody holds",
            }[code]
            yield write(code, what, places, evidence=self._moved_text(numbers), parameters=names)

    def _outside(self, number: int, leaf: Leaf) -> str:
        """The code for a trainable tensor that no optimizer holds; empty where nothing says it should learn."""
        name = self.names.leaf(leaf)
        if number in self._results:
            return "FL206"
        if leaf.hidden and not self.names.is_registered(leaf.tensor):
            return ""
        if not self.names.is_registered(leaf.tensor) and self.names.is_hidden(leaf.tensor):
            return "FL205"
        if self.intent.should_learn(name):
            return "FL201"
        if self.names.is_registered(leaf.tensor) or self.intent.should_stay(name):
            return ""
        lasting = isinstance(leaf.tensor, nn.Parameter) or (len(leaf.used_in) > 1 and leaf.made_in != max(leaf.used_in))
        watched = self.session.flow.notes.num_reads[number] or self._targets >> number & 1
        return "FL205" if lasting and not watched else ""

    def _look_for_results(self, step: Step) -> None:
        """Find attributes of modules that are results of operators on leaves nobody holds."""
        held = self.session.held()
        lost = [
            number
            for number in self.leaves.members(step.arrived)
            if number not in held and not self.names.is_registered(self.leaves.all[number].tensor)
        ]
        if not lost:
            return
        for name, module in self.names.modules():
            for key, value in vars(module).items():
                if isinstance(value, Tensor) and value.requires_grad and not value.is_leaf:
                    reach = self.leaves.reach(value)
                    for number in lost:
                        if reach >> number & 1:
                            self._results[number] = f"{name}.{key}" if name else key

    def _contents(self, held: dict[int, list[Optimizer]]) -> Iterator[Finding]:
        for use in self.session.procedure.optimizers.values():
            numbers = [number for number, optimizers in held.items() if use.optimizer in optimizers]
            yield from self._content(use, numbers)
        shared = [number for number, optimizers in held.items() if len({id(o) for o in optimizers}) > 1]
        stepping = [n for n in shared if sum(n in self._touched[id(o)] for o in held[n]) > 1]
        if stepping:
            names = self.leaf_names(stepping)
            makers = {id(o): o for number in stepping for o in held[number]}
            places = [
                place("optimizer", self.session.procedure.use_of(o).made_at, type(o).__name__) for o in makers.values()
            ]
            yield write("FL209", f"{describe(names)} is stepped by {len(makers)} optimizers", places, parameters=names)

    def _content(self, use: OptimizerUse, numbers: list[int]) -> Iterator[Finding]:
        if not use.num_updates or id(use.optimizer) not in self._trained:
            return  # it did not step, or passes on to the optimizer inside it
        kind = type(use.optimizer).__name__
        made = place("optimizer", use.made_at or use.steps_at, kind)
        frozen = [n for n in numbers if n not in self._trained[id(use.optimizer)]]
        if numbers and any(not group["params"] for group in use.optimizer.param_groups):
            what = f"{kind} has a parameter group without parameters"
            yield write("FL203", what, [made], level="note", so="the group does nothing", do="see what was to be in it")
        if len(frozen) == len(numbers):
            yield write("FL203", f"{kind} holds {len(numbers)} tensors, and none requires a gradient", [made])
            return
        lost = [
            n
            for n in numbers
            if not self._influenced >> n & 1
            and self.names.roots
            and not self.names.is_registered(self.leaves.all[n].tensor)
            and not self.names.tensor(self.leaves.all[n].tensor)
        ] or self._replaced(numbers)
        if lost:
            alive = all(n in self._held_elsewhere for n in lost)
            shapes = ", ".join(str(list(self.leaves.all[n].tensor.shape)) for n in lost[:3])
            what = f"{kind} holds {len(lost)} tensors that no module has and no loss uses: {shapes}"
            yield write(
                "FL202",
                what,
                [made],
                parameters=self.leaf_names(lost),
                level="note" if alive else None,
                evidence="the program holds them still: they may serve in another step" if alive else "",
            )
        if frozen:
            names = self.leaf_names(frozen)
            yield write(
                "FL210", f"{kind} holds {len(frozen)} frozen tensors: {describe(names)}", [made], parameters=names
            )

    def _replaced(self, numbers: list[int]) -> list[int]:
        """Tensors that a module once held, and holds no longer."""
        return [
            number
            for number in numbers
            if not self._influenced >> number & 1
            and self.names.tensor(self.leaves.all[number].tensor)
            and self.names.is_forgotten(self.leaves.all[number].tensor)
        ]

    def _order(self) -> Iterator[Finding]:
        for code, known, text in (
            ("FL208", self._uncleared, "still holds the gradient of an earlier update"),
            ("FL113", self._leaked, "is stepped with the gradient of another loss"),
        ):
            groups: dict[tuple[Line | None, Line | None], list[int]] = defaultdict(list)
            for number, (backward, update) in known.items():
                groups[backward.line, update.line].append(number)
            for (backward_line, update_line), numbers in groups.items():
                names = self.leaf_names(numbers)
                places = [place("backward", backward_line, "adds to its gradient"), place("step", update_line)]
                shared = code == "FL113" and all(map(self._is_shared, numbers))
                yield write(
                    code, f"{describe(names)} {text}", places, parameters=names, level="note" if shared else None
                )

    def _is_shared(self, number: int) -> bool:
        """Whether other optimizers step on the same loss: an encoder of several heads may be meant to follow all."""
        return len({id(update.use) for update in self._leaks_seen[number].updates}) > 1

    def _motion(self, held: dict[int, list[Optimizer]]) -> Iterator[Finding]:
        for optimizer, reasons in self._idle.items():
            if optimizer in self._working:
                continue
            why, update, clearing = reasons[0]
            explained = self._explained()
            if why in (_NONE, _ZERO) and all(explained >> n & 1 for n in update.gradients):
                continue  # a cut, which has its own finding
            if why.startswith("skipped") and len(reasons) < 3:
                continue  # scalers begin with a scale that is too large, on purpose
            groups = update.use.optimizer.param_groups
            if why == _RATE and (len(reasons) < 2 or any("initial_lr" in group for group in groups)):
                continue  # a warm-up begins at 0
            kind = type(update.use.optimizer).__name__
            places = [
                place("cleared", clearing.line if clearing else None),
                place("step", update.line, kind),
                place("optimizer", update.use.made_at, kind),
            ]
            do = _REMEDIES.get(why, "")
            what = f"{kind} steps and moves nothing: {why}"
            yield write("FL204", what, places, evidence=f"{len(reasons)} steps", do=do)
        yield from self._thrown_away(held)
        numbers = [n for n in self._moved_unread if n in held]
        if numbers:
            names = self.leaf_names(numbers)
            places = [place("step", self.session.procedure.use_of(held[numbers[0]][0]).steps_at)]
            yield write(
                "FL211",
                f"{describe(names)} moves, with a gradient of exactly 0",
                places,
                evidence="no loss depends on it",
                parameters=names,
            )

    def _thrown_away(self, held: dict[int, list[Optimizer]]) -> Iterator[Finding]:
        """Optimizers that never step, while the gradients they should read are computed and cleared."""
        for use in self.session.procedure.optimizers.values():
            numbers = [n for n in held if use.optimizer in held[n] and self._discarded >> n & 1]
            numbers = [n for n in numbers if not any(self.session.procedure.use_of(o).num_updates for o in held[n])]
            if not use.num_updates and numbers:
                kind, names = type(use.optimizer).__name__, self.leaf_names(numbers)
                places = [place("cleared", self._cleared_at), place("optimizer", use.made_at, kind)]
                what = f"{kind} never steps: the gradients of {describe(names)} are computed and cleared"
                yield write("FL204", what, places, parameters=names)

    def _unused(self, held: dict[int, list[Optimizer]]) -> Iterator[Finding]:
        silent = ~(self._influenced | self._explained())
        candidates = [n for n in held if silent >> n & 1 and self.leaves.all[n].tensor.requires_grad]
        candidates = [n for n in candidates if self.names.tensor(self.leaves.all[n].tensor)]
        candidates = [n for n in candidates if not self.names.is_forgotten(self.leaves.all[n].tensor)]
        if not self._num_steps:
            return
        for meant in (True, False):
            numbers = [n for n in candidates if self.intent.should_learn(self._name(n)) is meant]
            if numbers:
                names = self.leaf_names(numbers)
                yield write(
                    "FL207",
                    f"{describe(names)} has no influence on any loss",
                    self._places(self.leaves.all[numbers[0]]),
                    evidence=f"not used in {self._num_steps} steps"
                    + ("" if meant else "; whether it should have been is not known: declare `learn`"),
                    parameters=names,
                    level="fault" if meant else "note",
                )

    def _places(self, leaf: Leaf) -> tuple[Place, ...]:
        made = self.session.procedure.made_at.get(id(leaf.tensor))
        optimizers = [use for use in self.session.procedure.optimizers.values() if use.num_updates]
        holds = "holds it" if leaf.is_held else "does not hold it"
        lines = [
            place("made", made[1] if made and made[0]() is leaf.tensor else None),
            place("used", leaf.used_at or leaf.line),
            *(place("optimizer", use.made_at, holds) for use in optimizers[:1]),
        ]
        return tuple(line for line in lines if line is not None)

    def _name(self, number: int) -> str:
        return self.names.leaf(self.leaves.all[number])

    def _moved_text(self, numbers: list[int]) -> str:
        return f"a gradient arrived in {self._num_steps} steps, and nothing moved it" if numbers else ""
