"""A function applied to a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from frostline.errors import ConfigError, ShapeError, StepError


def chunked_map(
    function: Callable[..., Tensor],
    inputs: Tensor | tuple[Tensor, ...],
    *,
    chunk_size: int,
    dim: int = 0,
) -> Tensor:
    """Apply a function to slices of its inputs and join what it returns.

    Same as: ``function(*inputs)``, provided that row i of the output depends on row i of the inputs alone
    (no batch statistics, no attention along `dim`). That cannot be checked here. Random numbers are drawn
    chunk by chunk, so dropout takes other masks than in one call.

    Proof class: ``ROUNDING``: kernels may sum in another order at another size, and the gradient of what
    `function` trains is summed over the chunks.

    Memory: the output and what one chunk needs. With a gradient, each chunk keeps its inputs only, which are
    views, and is recomputed in backward; joining holds the output twice for a moment. Without one, chunks
    are written into the output as they come.

    Cost: more and smaller kernels; with a gradient, one more forward.

    Args:
        function: Takes one tensor an input, returns one tensor.
        inputs: One tensor or several, of one size along `dim`.
        chunk_size: Rows a call; 0 is the plain call.
        dim: The dimension of the rows, in every input and in the output.

    Raises:
        ShapeError: Inputs of different sizes along `dim`, or an output that has another size than its inputs.
        ConfigError: A negative `chunk_size`.
        StepError: `function` returned something else than a tensor.
    """
    tensors = inputs if isinstance(inputs, tuple) else (inputs,)
    if chunk_size == 0:
        return function(*tensors)
    if chunk_size < 0:
        raise ConfigError(f"chunk_size is {chunk_size}", where="chunked_map", do="give 1 or more, or 0 for one call")
    num_rows = tensors[0].shape[dim]
    for tensor in tensors:
        _check_rows(tensor, "each input of chunked_map", num_rows, dim)

    slices = zip(*(torch.split(tensor, chunk_size, dim) for tensor in tensors), strict=True)
    parts = (_apply(function, chunk, dim) for chunk in slices)
    first = next(parts)
    if first.requires_grad:
        return torch.cat([first, *parts], dim)
    shape = list(first.shape)
    shape[dim] = num_rows
    output = first.new_empty(shape)
    start = first.shape[dim]
    output.narrow(dim, 0, start).copy_(first)
    del first  # one part at a time, here and below
    for part in parts:
        output.narrow(dim, start, part.shape[dim]).copy_(part)
        start += part.shape[dim]
        del part
    return output


def _apply(function: Callable[..., Tensor], chunk: tuple[Tensor, ...], dim: int) -> Tensor:
    # Whether anything trains is known only afterwards (`function` may own parameters); where nothing does,
    # autograd records nothing and checkpointing is a plain call.
    part = checkpoint(function, *chunk, use_reentrant=False) if torch.is_grad_enabled() else function(*chunk)
    if not isinstance(part, Tensor):
        raise StepError(f"chunked_map's function returned {type(part).__name__}, not a tensor")
    _check_rows(part, "the output of chunked_map's function", chunk[0].shape[dim], dim)
    return part


def _check_rows(tensor: Tensor, what: str, num_rows: int, dim: int) -> None:
    if tensor.shape[dim:][:1] != (num_rows,):
        expected = ("...", f"{num_rows} along dim {dim}", "...")
        raise ShapeError(what, expected=expected, actual=tuple(tensor.shape))
