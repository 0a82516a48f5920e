"""One audited step: the backward passes and the updates that follow them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from frostline.tracing import Backward, Change, Draw, Escape, Event, ModuleUse, RootCall, Update
from frostline.where import Line


@dataclass(slots=True, eq=False)
class Clearing:
    """Gradients were cleared.

    Attributes:
        numbers: The leaves whose gradients they were.
        line: The user's line.
        to_none: Whether they were released.
        discarded: The leaves with a gradient that no optimizer had read.
        num_backwards: Backward passes of the step before it.
        lines: Of the backward passes whose gradients were discarded.
    """

    numbers: int
    line: Line | None
    to_none: bool
    discarded: int
    num_backwards: int
    lines: frozenset[Line | None] = frozenset()


@dataclass(slots=True, eq=False)
class Clipping:
    """Gradients were clipped.

    Attributes:
        line: The user's line.
        scaled: Whether they still carried a scaler's factor.
        numbers: The leaves they belong to.
    """

    line: Line | None
    scaled: bool
    numbers: int


@dataclass(slots=True, eq=False)
class Tally:
    """What is kept of the steps of one phase.

    Attributes:
        num_steps: Steps.
        num_backwards: Backward passes in them.
        num_skipped: Updates a scaler skipped.
        held: The leaves its optimizers hold.
        reached: Those of them a gradient arrived at.
    """

    num_steps: int = 0
    num_backwards: int = 0
    num_skipped: int = 0
    held: int = 0
    reached: int = 0

    def add(self, step: Step) -> None:
        """Count a step."""
        self.num_steps += 1
        self.num_backwards += len(step.backwards)
        for update in step.updates:
            self.num_skipped += update.skipped
            for number in update.gradients:
                self.held |= 1 << number
                self.reached |= step.has_gradient(number) << number


@dataclass(eq=False)
class Step:
    """What happened from one update to the next.

    Attributes:
        index: Its number.
        backwards: Backward passes, in order.
        updates: Optimizer steps, in order.
        clearings: Calls of `zero_grad`.
        clippings: Gradients clipped.
        scaler_updates: Gradient scalers that chose their next scale since the last backward, and the lines.
        modules: How each module was used, by id.
        root_calls: Forwards called from outside all modules, in order.
        draws: Random numbers drawn in modules.
        escapes: Values that left torch so far.
        changes: Tensors written in place.
        finished: Whether an update followed the backwards, or the program ended.
        error: What the program raised in it.
    """

    index: int
    backwards: list[Backward] = field(default_factory=list)
    updates: list[Update] = field(default_factory=list)
    clearings: list[Clearing] = field(default_factory=list)
    clippings: list[Clipping] = field(default_factory=list)
    scaler_updates: list[tuple[int, Line | None]] = field(default_factory=list)
    modules: dict[int, ModuleUse] = field(default_factory=dict)
    root_calls: list[RootCall] = field(default_factory=list)
    draws: list[Draw] = field(default_factory=list)
    escapes: list[Escape] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    error: BaseException | None = None

    @property
    def influence(self) -> int:
        """Leaves that some loss of the step depends on."""
        union = 0
        for backward in self.backwards:
            union |= backward.influence
        return union

    @property
    def arrived(self) -> int:
        """Leaves a gradient arrived at."""
        union = 0
        for backward in self.backwards:
            union |= backward.arrived
        return union

    def has_gradient(self, number: int) -> bool:
        """Whether a gradient arrived at a leaf, or an optimizer found one there."""
        if self.arrived >> number & 1:
            return True
        return any(update.gradients.get(number, "none") != "none" for update in self.updates)

    @cached_property
    def ancestors(self) -> set[Event]:
        """The events that some loss of the step depends on, through cuts too; asked for when the step has ended."""
        return ancestors_of(self.backwards, through_cuts=True)

    @cached_property
    def connected(self) -> set[Event]:
        """The events whose gradients the step's backwards compute."""
        return ancestors_of(self.backwards, through_cuts=False)


def ancestors_of(backwards: Iterable[Backward], *, through_cuts: bool) -> set[Event]:
    """The events that the losses of some backward passes depend on.

    Args:
        backwards: The passes.
        through_cuts: Also where autograd does not get to; otherwise those alone whose gradients are computed.
    """
    seen: set[Event] = set()
    stack = [root.event for backward in backwards for root in backward.roots if root.event is not None]
    while stack:
        event = stack.pop()
        if event not in seen:
            seen.add(event)
            sources = (source for source in event.sources if through_cuts or source.reach)
            stack += [source.event for source in sources if source.event is not None]
    return seen
