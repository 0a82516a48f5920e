"""What a flow trace writes down: operators, backward passes, escapes. Facts only; conclusions are drawn elsewhere.

Sets of trainable tensors are integers, one bit a tensor, numbered by `Leaves`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from types import CodeType
from typing import Literal, NamedTuple
from weakref import ReferenceType

from torch import Tensor, nn

from frostline.where import Line

EventKind = Literal["op", "detach", "data", "rewrap", "reattach", "gradient"]
GradSwitch = Literal["no_grad", "inference_mode", "set_grad_enabled", "checkpoint", "unknown"]


@dataclass(frozen=True, slots=True)
class GradContext:
    """Why gradients are switched off.

    Attributes:
        kind: What switched them off.
        line: The user's line: the ``with``, the decorator, the call.
        code: The function that was running then; None where it is not known.
    """

    kind: GradSwitch
    line: Line | None
    code: CodeType | None = None


class Source(NamedTuple):
    """One input of an operator.

    Attributes:
        event: What made its value; None for a leaf, or for a tensor from before the trace.
        reach: Trainable tensors that autograd could get to from it then.
        influence: Trainable tensors its value depends on.
        leaf: Its own number where it is a trainable tensor, else -1.
    """

    event: Event | None
    reach: int
    influence: int
    leaf: int


@dataclass(slots=True, eq=False, repr=False)
class Event:
    """One operator that something trainable has influenced.

    Attributes:
        index: Its place in the trace.
        step: The step it ran in.
        op: Its name.
        line: The user's line.
        near: The library's line that called it, where the user's is further out.
        module: The innermost module whose forward was running.
        sources: Its inputs that something trainable has influenced.
        influence: Trainable tensors its result depends on.
        reach: Trainable tensors autograd gets to from its result; more may come to light when the result is used.
        kind: What sort of operator it is, as far as gradients are concerned.
        grad_enabled: Whether autograd was recording.
        context: Why not, where it was not.
        live: Whether the context's function was still running.
        floating: Whether the result can carry a gradient.
        scalar: Whether the result has one element.
        shape: Of the result; None where it is not known, or there are several.
        factor: The number the tensor was multiplied by, for a product or quotient with a plain number.
        single: Whether it normalises over a single element, which is constant.
        sums: Whether it is a sum over elements, not a mean.
        result: The result.
    """

    index: int
    step: int
    op: str
    line: Line | None
    near: Line | None
    module: nn.Module | None
    sources: tuple[Source, ...]
    influence: int
    reach: int
    kind: EventKind = "op"
    grad_enabled: bool = True
    context: GradContext | None = None
    live: bool = True
    floating: bool = True
    scalar: bool = False
    shape: tuple[int, ...] | None = None
    factor: float | None = None
    single: bool = False
    sums: bool = False
    result: ReferenceType[Tensor] | None = None

    @property
    def is_inside_function(self) -> bool:
        """Whether it ran in the forward of an autograd.Function, a reentrant checkpoint's among them."""
        return not self.grad_enabled and (self.context is None or self.context.kind == "checkpoint")


class Root(NamedTuple):
    """Where a backward pass starts: a loss."""

    event: Event | None
    influence: int
    reach: int
    shape: tuple[int, ...]


@dataclass(slots=True, eq=False, repr=False)
class Backward:
    """One call of backward, or of autograd.grad.

    Attributes:
        index: Its place among the events.
        step: The step it ran in.
        line: The user's line.
        roots: What it started from.
        accumulates: Whether it adds to `.grad` (backward), or returns gradients (autograd.grad).
        targets: Trainable tensors it was restricted to; None where it goes everywhere.
        retains: Whether the graph was to be kept.
        creates: Whether the gradients carry a graph.
        arrived: Trainable tensors a gradient arrived at.
        norms: By event: the largest magnitudes of the gradients that came to its result, as tensors not yet read.
        error: What it raised.
        scaled: Whether a gradient scaler had multiplied the loss since its last update.
        loss: Its first root, while somebody holds it.
    """

    index: int
    step: int
    line: Line | None
    roots: tuple[Root, ...]
    accumulates: bool
    targets: int | None
    retains: bool
    creates: bool
    arrived: int = 0
    norms: dict[Event, list[Tensor]] = field(default_factory=dict)
    error: BaseException | None = None
    scaled: bool = False
    loss: ReferenceType[Tensor] | None = None

    @property
    def influence(self) -> int:
        """Trainable tensors the loss depends on."""
        return _union(root.influence for root in self.roots)

    @property
    def reach(self) -> int:
        """Trainable tensors autograd gets to from the loss."""
        return _union(root.reach for root in self.roots)


class Escape(NamedTuple):
    """A value that left torch: a number, a list or an array was made of it."""

    op: str
    line: Line | None
    influence: int
    step: int


class Draw(NamedTuple):
    """An operator that drew random numbers inside a module.

    Attributes:
        op: Its name.
        line: The user's line.
        module: The innermost module that was running.
        grad_enabled: Whether autograd was recording.
        recomputing: Whether backward was running: an activation checkpoint recomputes.
        state: A digest of the generator's state before it; None on fake tensors.
        checkpoint: The user's line that called an activation checkpoint around it.
        training: Whether the innermost module was in training mode.
        influence: Trainable tensors its input depended on.
    """

    op: str
    line: Line | None
    module: nn.Module | None
    grad_enabled: bool
    recomputing: bool
    state: bytes | None
    checkpoint: Line | None
    training: bool
    influence: int


def _union(sets: Iterable[int]) -> int:
    union = 0
    for bits in sets:
        union |= bits
    return union
