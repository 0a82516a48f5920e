"""FL404: a gradient penalty that is a mean over more rows than there are outputs, and too weak by as many."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from frostline.gradflow.rule import Rule, place_of, write
from frostline.gradflow.step import Step
from frostline.records import Finding
from frostline.tracing import Event

if TYPE_CHECKING:
    from frostline.gradflow.session import Session

_NUM_INPUTS = 2
"""Rows an output may have: a critic of pairs has two inputs, and a factor of two is a matter of taste."""
_SQUARES = frozenset({"pow", "square", "__pow__", "norm", "vector_norm", "pow_", "square_"})
_PRODUCTS = frozenset({"mul", "__mul__", "multiply"})
_LAYOUTS = frozenset(
    {"view", "reshape", "flatten", "permute", "transpose", "contiguous", "to", "float", "double", "clone", "squeeze"}
)


class _Diluted(NamedTuple):
    """A mean of squared gradients over too many rows."""

    mean: Event
    gradient: Event
    num_rows: int
    num_outputs: int


class Penalties(Rule):
    """Follows each mean in a loss back to a squared gradient, and counts its rows and the outputs it is of.

    The penalties of R1 and of WGAN-GP square the gradient of *one* output at *its* input. Where a batch enters as
    several rows an output (the rays of an image), a mean over rows is smaller than that by their number.
    """

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._found: dict[tuple[object, object], _Diluted] = {}

    def observe(self, step: Step) -> None:
        """Look at the losses of a step."""
        if any(backward.creates for backward in step.backwards):
            for event in step.connected:
                found = _diluted(event)
                if found is not None and not self._is_at_weights(found.gradient):
                    self._found.setdefault((found.mean.line, found.gradient.line), found)

    def findings(self) -> Iterator[Finding]:
        """One finding for each such mean."""
        for mean, gradient, num_rows, num_outputs in self._found.values():
            yield write(
                "FL404",
                f"a gradient penalty is a mean over {num_rows:,} rows, and the gradient is of {num_outputs:,} outputs:"
                f" {num_rows / num_outputs:,.0f} rows belong to each",
                [place_of("averaged", mean), place_of("gradient", gradient)],
                evidence=f"the gradient has shape {gradient.shape}; each row's squares are summed, and these averaged",
            )

    def _is_at_weights(self, gradient: Event) -> bool:
        """Whether it was asked for at a parameter: the rows of a weight belong to no output."""
        leaves = [self.leaves.all[source.leaf] for source in gradient.sources if source.leaf >= 0]
        return any(leaf.is_held or isinstance(leaf.tensor, nn.Parameter) for leaf in leaves)


def _diluted(mean: Event) -> _Diluted | None:
    """What is wrong with a mean, if it is one of the squares of a gradient's rows."""
    rows = _rows_averaged(mean)
    gradient = None if rows is None else _gradient_under(rows)
    if rows is None or gradient is None or not gradient.shape or len(gradient.shape) < 2:
        return None
    num_rows, num_outputs = gradient.shape[0], _num_outputs(gradient)
    if (rows.shape or (0,))[0] != num_rows or num_outputs < 2 or num_rows % num_outputs:
        return None
    if num_rows // num_outputs <= _NUM_INPUTS:
        return None
    return _Diluted(mean, gradient, num_rows, num_outputs)


def _rows_averaged(event: Event) -> Event | None:
    """The numbers a mean over all of them is of, one a row; None for what is no such mean."""
    name = _name(event)
    source = _only(event)
    if source is None or not event.scalar:
        return None
    if name == "mean":
        return source if _is_column(source) else None
    if event.factor is not None and source.sums:  # sum() / num_rows
        summed = _only(source)
        num = (summed.shape or (0,))[0] if summed is not None else 0
        return summed if num and math.isclose(event.factor * num, 1) else None
    return None


def _gradient_under(event: Event) -> Event | None:
    """The gradient some numbers are made of, squared before anything was added to it or taken from it."""
    way = [event]
    while (source := _only(way[-1])) is not None and way[-1].kind != "gradient":
        way.append(source)
    gradient = way.pop()
    while way and (_name(way[-1]) in _LAYOUTS or way[-1].factor is not None):
        way.pop()
    is_squared = bool(way) and (_name(way[-1]) in _SQUARES or _is_product_with_itself(way[-1]))
    return gradient if gradient.kind == "gradient" and is_squared else None


def _num_outputs(gradient: Event) -> int:
    """How many numbers a gradient is of: what was summed up or averaged, where it was."""
    event = gradient.sources[0].event  # autograd.grad takes the outputs first, then where to differentiate
    while event is not None and event.scalar:
        event = _only(event)
    return 0 if event is None or event.shape is None else math.prod(event.shape)


def _is_column(event: Event) -> bool:
    return event.shape is not None and len(event.shape) > 0 and math.prod(event.shape) == event.shape[0]


def _is_product_with_itself(event: Event) -> bool:
    return _name(event) in _PRODUCTS and len(event.sources) == 2 and _only(event) is not None


def _only(event: Event) -> Event | None:
    """What an operator's one influenced input was made by, given once or twice."""
    made = {source.event for source in event.sources}
    return made.pop() if len(made) == 1 else None


def _name(event: Event) -> str:
    return event.op.rpartition(".")[2]
