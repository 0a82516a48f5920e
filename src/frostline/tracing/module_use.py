"""How modules were used: what influenced their inputs, what came out, in which mode, and whether at random."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from frostline.tracing.event import Event
from frostline.where import Line

_MOST_OUTPUTS = 16


@dataclass(slots=True, eq=False)
class ModuleCall:
    """One forward of a normalisation that moves running statistics.

    Attributes:
        recomputing: Whether an activation checkpoint was recomputing it.
        line: The user's line.
        checkpoint: The user's line that called an activation checkpoint around it.
        root: The user's line that called the outermost module.
        outputs: The events that made what came out.
    """

    recomputing: bool
    line: Line | None
    checkpoint: Line | None
    root: Line | None = None
    outputs: list[Event] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class ModuleUse:
    """How one module was used.

    Attributes:
        module: The module.
        num_calls: Forwards, without recomputed ones.
        influence: Trainable tensors its inputs depended on.
        outputs: The events that made what came out last.
        random: Whether something inside drew random numbers.
        calls: The forwards of a BatchNorm in training mode, one by one.
    """

    module: nn.Module
    num_calls: int = 0
    influence: int = 0
    outputs: list[Event] = field(default_factory=list)
    random: bool = False
    calls: list[ModuleCall] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class RootCall:
    """One forward that was called from outside all modules.

    Attributes:
        module: The module.
        line: The user's line.
        outputs: The events that made what came out.
    """

    module: nn.Module
    line: Line | None
    outputs: list[Event] = field(default_factory=list)


class ModuleUses:
    """Keeps the stack of running modules, and a record of each one that ran."""

    def __init__(self) -> None:
        self.by_id: dict[int, ModuleUse] = {}
        self.root_calls: list[RootCall] = []
        self._stack: list[ModuleUse] = []

    def begin_root(self, module: nn.Module, line: Line | None) -> None:
        """A forward is called from outside all modules."""
        self.root_calls.append(RootCall(module, line))

    @property
    def current(self) -> nn.Module | None:
        """The innermost module whose forward is running."""
        return self._stack[-1].module if self._stack else None

    def enter(
        self, module: nn.Module, influence: int, *, recomputing: bool, line: Line | None, checkpoint: Line | None
    ) -> None:
        """A forward begins."""
        use = self.by_id.get(id(module))
        if use is None:
            use = self.by_id[id(module)] = ModuleUse(module)
        use.influence |= influence
        use.num_calls += not recomputing
        if module.training and isinstance(module, nn.modules.batchnorm._NormBase):
            use.calls.append(
                ModuleCall(recomputing, line, checkpoint, self.root_calls[-1].line if self.root_calls else None)
            )
        self._stack.append(use)

    def given(self, influences: list[int]) -> None:
        """What the innermost module was given by keyword depends on these."""
        for influence in influences:
            self._stack[-1].influence |= influence

    def leave(self, module: nn.Module, outputs: list[Event]) -> None:
        """It ends, and these events made what comes out; one that ran before the trace began is nobody's."""
        while self._stack:
            use = self._stack.pop()
            if use.module is module:
                use.outputs = [*use.outputs, *outputs][-_MOST_OUTPUTS:]
                if use.calls:
                    use.calls[-1].outputs += outputs
                if not self._stack and self.root_calls:
                    self.root_calls[-1].outputs = outputs
                return

    def end_step(self) -> None:
        """Begin a new record; what runs goes on running."""
        self.by_id, self.root_calls = {}, self.root_calls[-1:] if self._stack else []

    def drew(self) -> None:
        """Something drew random numbers: every running module is random."""
        for use in self._stack:
            use.random = True
