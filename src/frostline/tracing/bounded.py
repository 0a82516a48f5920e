"""Operators whose output is as big as values say, where there are no values: as big as a bound allows."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException

_aten = torch.ops.aten


def bounded_output(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], bound: int) -> tuple[Any, int]:
    """What an operator returns if it returns as many entries as it can, and no more than a bound.

    Args:
        func: The operator.
        args: Its arguments, fake.
        kwargs: Those by name.
        bound: The most entries.

    Returns:
        The output, fake, and its number of entries.

    Raises:
        DynamicOutputShapeException: The operator is none of those known here.
    """
    if func not in _RULES:
        raise DynamicOutputShapeException(func)
    signature = inspect.Signature(
        [
            inspect.Parameter(argument.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=argument.default_value)
            for argument in func._schema.arguments
        ]
    )
    given = signature.bind(*args, **kwargs)
    given.apply_defaults()
    return _RULES[func](bound, **given.arguments)


def _nonzero(bound: int, self: Tensor) -> tuple[Tensor, int]:
    num_entries = min(bound, self.numel())
    return self.new_empty((self.dim(), num_entries), dtype=torch.int64).t(), num_entries


def _masked_select(bound: int, self: Tensor, mask: Tensor) -> tuple[Tensor, int]:
    num_entries = min(bound, torch.broadcast_shapes(self.shape, mask.shape).numel())
    return self.new_empty(num_entries), num_entries


def _index(bound: int, self: Tensor, indices: list[Tensor | None]) -> tuple[Tensor, int]:
    """A mask picks by as many rows of indices as it has true values."""
    picked: list[Tensor | None] = []
    num_entries = 0
    for index in indices:
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            num_entries = min(bound, index.numel())
            picked += [index.new_empty(num_entries, dtype=torch.int64) for _ in range(index.dim())]
        else:
            picked.append(index)
    return _aten.index.Tensor(self, picked), num_entries


def _repeat_interleave(bound: int, repeats: Tensor, output_size: int | None) -> tuple[Tensor, int]:
    return repeats.new_empty(bound, dtype=torch.int64), bound


def _ctc_loss(
    bound: int, log_probs: Tensor, targets: Tensor, **lengths_and_options: Any
) -> tuple[tuple[Tensor, Tensor], int]:
    """A loss for each sequence, and the paths through its labels, as many as the longest one has."""
    num_steps, batch_size = log_probs.shape[:2]
    num_labels = min(bound, targets.size(-1))
    paths = log_probs.new_empty(batch_size, num_steps, 2 * num_labels + 1)
    return (log_probs.new_empty(batch_size), paths), num_labels


def _unique(
    bound: int,
    self: Tensor,
    dim: int | None = None,
    return_inverse: bool = False,
    return_counts: bool = False,
    sorted: bool = True,
) -> tuple[tuple[Tensor, ...], int]:
    size = self.numel() if dim is None else self.size(dim)
    num_entries = min(bound, size)
    everything = dim is not None  # the kernel along one dimension always counts
    shape = [num_entries] if dim is None else [*self.shape[:dim], num_entries, *self.shape[dim:][1:]]
    inverse = list(self.shape) if dim is None else [size]
    outputs = (
        self.new_empty(shape),
        self.new_empty(inverse if return_inverse or everything else [0], dtype=torch.int64),
        self.new_empty([num_entries] if return_counts or everything else [0], dtype=torch.int64),
    )
    return outputs, num_entries


_RULES: dict[Any, Callable[..., tuple[Any, int]]] = {
    _aten.nonzero.default: _nonzero,
    _aten.masked_select.default: _masked_select,
    _aten.index.Tensor: _index,
    _aten.repeat_interleave.Tensor: _repeat_interleave,
    _aten._unique2.default: _unique,
    _aten.unique_consecutive.default: _unique,
    _aten.unique_dim.default: _unique,
    _aten._ctc_loss.Tensor: _ctc_loss,
}
