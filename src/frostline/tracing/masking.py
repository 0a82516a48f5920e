"""Samples that a mask has emptied, on their way into a batch's statistics."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from frostline.tracing.operators import running_statistics
from frostline.tracing.stack import locate
from frostline.tracing.values import has_values, is_transformed
from frostline.where import Line

_PRODUCTS = frozenset(
    {
        Tensor.mul, Tensor.mul_, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__, Tensor.__imul__, torch.mul,
        torch.multiply,
    }
)  # fmt: skip
_FILLS = frozenset({Tensor.masked_fill, Tensor.masked_fill_, torch.masked_fill})
_MASKING = _PRODUCTS | _FILLS | {torch.where, Tensor.where}
_FEWEST_POSITIONS = 4


class EmptySamples(NamedTuple):
    """A batch norm that updated its running statistics from samples of which a mask had left nothing.

    Attributes:
        statistics: Ids of the running statistics.
        mask: The user's line that emptied the samples.
        line: The user's line that called the batch norm.
        num_empty: Empty samples.
        num_samples: All samples.
    """

    statistics: frozenset[int]
    mask: Line | None
    line: Line | None
    num_empty: int
    num_samples: int


class Masking:
    """Follows whole samples from the operator that multiplies them by zero to the batch norms that count them.

    Only masks with one value a sample are followed, ``(B, 1, ..., 1)``, and only what they leave without content: maps
    that are constant in every channel, as convolutions make of zeros. Samples that are blank by themselves are data.

    Attributes:
        found: In this step.
    """

    def __init__(self) -> None:
        self.found: list[EmptySamples] = []
        self._masks: dict[tuple[bool, ...], Line | None] = {}

    def end_step(self) -> None:
        """Let go of what only the finished step needed."""
        self.found = []
        self._masks.clear()

    def apply(self, func: Any, args: tuple[Any, ...]) -> None:
        """An operator is about to run: does it empty some samples?"""
        if func not in _MASKING or is_transformed():
            return
        factor = _factor(func, args)
        if factor is None or not has_values(factor) or factor.requires_grad:  # a gate that learns is the network's own
            return
        kept = tuple(bool(value) for value in factor.detach().flatten().tolist())
        kept = tuple(not value for value in kept) if func in _FILLS else kept
        if any(kept) and not all(kept):
            self._masks.setdefault(kept, locate().line)

    def normalise(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """`F.batch_norm` is about to run: does it count samples that a mask has emptied?"""
        statistics = running_statistics(args, kwargs) if self._masks else ()
        x = args[0] if args else kwargs.get("input")
        if not statistics or not isinstance(x, Tensor) or not has_values(x) or is_transformed():
            return
        if x.dim() < 3 or x[0, 0].numel() < _FEWEST_POSITIONS:
            return  # a vector always looks constant
        masks = [mask for mask in self._masks if len(mask) == len(x)]
        if not masks:
            return
        flat = x.detach().flatten(2)
        empty = (flat == flat[:, :, :1]).flatten(1).all(1).tolist()
        # Samples that no mask has emptied came empty: then it is the data's way.
        masks = [
            kept for kept in masks if not any(not there and not none for there, none in zip(kept, empty, strict=True))
        ]
        if masks and empty == [not all(there) for there in zip(*masks, strict=True)]:
            keys = frozenset(map(id, statistics))
            self.found.append(EmptySamples(keys, self._masks[masks[0]], locate().line, sum(empty), len(empty)))


def _factor(func: Any, args: tuple[Any, ...]) -> Tensor | None:
    """What an operator multiplies, fills or chooses samples by, if it has one value a sample."""
    first, second, third = (*args[:3], None, None, None)[:3]
    if func in _PRODUCTS:
        factor, samples = first, second
        if isinstance(first, Tensor) and isinstance(second, Tensor) and first.numel() > second.numel():
            factor, samples = second, first
    elif not _is_zero(third):
        return None
    elif func is torch.where:
        factor, samples = first, second
    else:
        factor, samples = second, first
    if not isinstance(factor, Tensor) or not isinstance(samples, Tensor) or samples.dim() < 3:
        return None
    is_mask = factor.dim() == samples.dim() and factor.shape[0] == factor.numel() == samples.shape[0] > 1
    return factor if is_mask else None


def _is_zero(value: Any) -> bool:
    if isinstance(value, Tensor):
        return has_values(value) and not bool(value.detach().any())
    return isinstance(value, (int, float)) and not value
