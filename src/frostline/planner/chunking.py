"""A module applied to a few samples at a time, where no gradient passes through it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from frostline.errors import StepError
from frostline.regions import Override, override_

_APART = "take this module out of the plan: its samples are not apart"
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def chunk_(module: nn.Module, num_chunks: int) -> Override:
    """Let a frozen module before the trainable part take its samples in so many chunks.

    Same as: the module in one call, provided that it treats its samples alike and apart (no batch statistics) and
    that every tensor whose first size is the batch's counts samples there. A call through which a gradient passes
    is a plain one.

    Proof class: ``ROUNDING``: kernels may sum in another order at another size.

    Memory: the output and what one chunk needs.

    Args:
        module: Its first tensor argument says how many samples there are.
        num_chunks: How many, at most; a batch of fewer samples goes one by one.

    Returns:
        The handle whose `remove` takes it off again.

    Raises:
        StepError: Not here, but in a call whose output has another number of samples than its input.
    """
    return override_(module, "forward", partial(by_chunks, num_chunks))


def by_chunks(num_chunks: int, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a module's forward, `inner`, on its samples in so many chunks."""
    leaves, structure = tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    module: nn.Module = inner.__self__  # type: ignore[attr-defined]
    trains = any(tensor.requires_grad for tensor in (*tensors, *module.parameters()))
    num_rows = tensors[0].shape[0] if tensors and tensors[0].dim() else 0
    if num_rows <= 1 or num_chunks <= 1 or (trains and torch.is_grad_enabled()):
        return inner(*args, **kwargs)
    whole: Any = None
    chunk_size = -(-num_rows // num_chunks)
    for start in range(0, num_rows, chunk_size):
        num = min(chunk_size, num_rows - start)
        part_args, part_kwargs = tree_unflatten([_part(leaf, num_rows, start, num) for leaf in leaves], structure)
        part = inner(*part_args, **part_kwargs)
        if whole is None:
            whole = tree_map(partial(_room_for, num, num_rows), part)
        for target, value in zip(tree_leaves(whole), tree_leaves(part), strict=True):
            if isinstance(value, Tensor):
                target.narrow(0, start, num).copy_(value)
            elif value is not target and value != target:
                raise StepError(f"one chunk gave {target!r:.40} and another {value!r:.40}", do=_APART)
        del part
    return whole


def _part(leaf: Any, num_rows: int, start: int, num: int) -> Any:
    counts_samples = isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == num_rows
    return leaf.narrow(0, start, num) if counts_samples else leaf


def _room_for(num: int, num_rows: int, value: Any) -> Any:
    if not isinstance(value, Tensor):
        if not isinstance(value, _PLAIN):
            what = f"a chunk gave a {type(value).__name__}, of which it is not known what counts samples"
            raise StepError(what, do=_APART)
        return value
    if value.dim() == 0 or value.shape[0] != num:
        raise StepError(
            f"a chunk of {num} samples gave a tensor of shape {tuple(value.shape)}",
            do=_APART,
        )
    return value.new_empty((num_rows, *value.shape[1:]))
