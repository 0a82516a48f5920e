"""Which operator is to blame: where the flow to a parameter ends, and where its gradient vanishes or breaks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from frostline.tracing import Backward, Event, Root, has_no_derivative

VanishingKind = Literal["no derivative", "cancelled", "one element", "constant zero", "saturated", "other"]
_FLAT_IN_PLACES = frozenset(
    """
    clamp clip clamp_ clip_ clamp_min clamp_max relu relu_ relu6 threshold hardtanh hardtanh_ hardsigmoid
    """.split()
)
_PRODUCTS = ("mul", "mul_", "__rmul__", "__mul__", "matmul", "mm", "bmm", "einsum")
Trouble = Literal["zero", "nonfinite", "none"]


@dataclass(frozen=True)
class Cut:
    """Where autograd loses a parameter that the loss depends on.

    Attributes:
        events: The operators whose inputs autograd could follow to the parameter and whose results it cannot.
        reattached: An operator-free new leaf between them and the loss.
    """

    events: tuple[Event, ...]
    reattached: Event | None = None


def find_cut(roots: Iterable[Root], number: int) -> Cut:
    """Walk from losses back through what the graph has lost, to where it still knew the parameter.

    Args:
        roots: Losses that the parameter influences and whose graphs do not lead to it.
        number: The parameter's number among the leaves.
    """
    bit = 1 << number
    cuts: list[Event] = []
    reattached: Event | None = None
    seen: set[int] = set()
    stack = [root.event for root in roots if root.event is not None and not root.reach & bit]
    while stack:
        event = stack.pop()
        if id(event) in seen:
            continue
        seen.add(id(event))
        if event.kind == "reattach":
            reattached = event
        for source in event.sources:
            if source.influence & bit:
                if source.reach & bit:
                    cuts.append(event)
                elif source.event is not None:
                    stack.append(source.event)
    return Cut(tuple(sorted(set(cuts), key=lambda event: event.index)), reattached)


def cause_of(event: Event) -> str:
    """The code of a cut at an operator."""
    if event.kind in ("detach", "data", "gradient"):
        return "FL104"
    if event.kind == "rewrap":
        return "FL105"
    if not event.grad_enabled:
        context = event.context
        if context is None:
            return "FL116"  # inside the forward of an autograd.Function
        if context.kind == "inference_mode":
            return "FL102"
        if context.kind == "checkpoint":
            return "FL108"
        if context.kind in ("set_grad_enabled", "unknown") or not event.live:
            return "FL103"
        return "FL101"
    if not event.floating or has_no_derivative(event.op):
        return "FL114"
    return "FL116"


@dataclass(frozen=True)
class Vanishing:
    """Where a gradient becomes zero, broken or nothing on its way back.

    Attributes:
        events: The operators in whose backward it happens, the ones nearest to the loss first.
        kind: ``no derivative``: the operator is flat; ``cancelled``: gradients of several uses add up to zero;
            ``one element``: a softmax over a single element; ``constant zero``: a product with a zero that nothing
            moves; ``saturated``: every element lies where the operator is flat; ``other``: it depends on the values.
    """

    events: tuple[Event, ...]
    kind: VanishingKind


def find_vanishing(backward: Backward, roots: Iterable[Event | None], number: int, trouble: Trouble) -> Vanishing:
    """Walk back along the graph to the operators where a parameter's gradient turns bad.

    Args:
        backward: Holds the magnitudes of the gradients that came to each event.
        roots: The events to start from.
        number: The parameter's number among the leaves.
        trouble: What it turned into.
    """
    bit = 1 << number
    suspects: list[Event] = []
    users: dict[int, int] = {}
    seen: set[int] = set()
    stack = [event for event in roots if event is not None]
    while stack:
        event = stack.pop()
        if id(event) in seen:
            continue
        seen.add(id(event))
        good = _is_good(backward, event, trouble)
        for source in event.sources:
            if not source.reach & bit or not event.reach & bit:
                continue
            if good and source.event is not None:
                users[id(source.event)] = users.get(id(source.event), 0) + 1
            if good and (source.event is None or not _is_good(backward, source.event, trouble)):
                suspects.append(event)
            if source.event is not None:
                stack.append(source.event)
    suspects = sorted(set(suspects), key=lambda event: -event.index)
    return Vanishing(tuple(suspects), _kind(suspects, users, bit))


def _kind(suspects: list[Event], users: dict[int, int], bit: int) -> VanishingKind:
    for event in suspects:
        if has_no_derivative(event.op):
            return "no derivative"
    for event in suspects:
        if event.single:
            return "one element"
    for event in suspects:
        for source in event.sources:
            if source.event is not None and source.reach & bit and users.get(id(source.event), 0) > 1:
                return "cancelled"
    products = [event for event in suspects if event.op.rpartition(".")[2] in _PRODUCTS]
    if products and len(products) == len(suspects) and all(len(event.sources) == 1 for event in products):
        return "constant zero"
    if suspects and all(event.op.rpartition(".")[2] in _FLAT_IN_PLACES for event in suspects):
        return "saturated"
    return "other"


def _is_good(backward: Backward, event: Event, trouble: Trouble) -> bool:
    """Whether the gradient that came to an event was still what it should be."""
    norms = backward.norms.get(event)
    if not norms:
        return False
    return {
        "none": True,
        "zero": any(_value(norm) != 0 for norm in norms),
        "nonfinite": all(_value(norm) < float("inf") for norm in norms),
    }[trouble]


def _value(norm: Tensor) -> float:
    return float(norm)
