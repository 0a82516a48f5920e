"""A function applied to a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from frostline.errors import ConfigError, ShapeError, StepError

Output = TypeVar("Output", bound=Tensor | tuple[Tensor, ...])


def chunked_map(
    function: Callable[..., Output],
    inputs: Tensor | tuple[Tensor, ...],
    *,
    chunk_size: int,
    dim: int = 0,
    shared: tuple[Tensor, ...] = (),
    preserve_rng_state: bool = True,
) -> Output:
    """Apply a function to slices of its inputs and join what it returns.

    Same as: ``function(*inputs, *shared)``, provided that row i of the outputs depends on row i of the inputs alone
    (no batch statistics, no attention along `dim`). That cannot be checked here. Random numbers are drawn
    chunk by chunk, so dropout takes other masks than in one call.

    Proof class: ``ROUNDING``: kernels may sum in another order at another size, and the gradient of what
    `function` trains is summed over the chunks.

    Memory: the outputs and what one chunk needs. With a gradient, each chunk keeps its inputs only, which are
    views, and is recomputed in backward; joining holds the outputs twice for a moment. Without one, chunks
    are written into the outputs as they come.

    Cost: more and smaller kernels; with a gradient, one more forward. `deferred_map` does the same with less
    bookkeeping a chunk and no second derivative.

    Args:
        function: Takes one tensor an input and the shared ones; returns one tensor or a tuple of them.
        inputs: One tensor or several, of one size along `dim`.
        chunk_size: Rows a call; 0 is the plain call.
        dim: The dimension of the rows, in every input and in every output.
        shared: Tensors that every call gets whole.
        preserve_rng_state: Draw the same random numbers in the recomputation. Where `function` draws none, False
            saves the 5 kB that each chunk keeps for it.

    Raises:
        ShapeError: Inputs of different sizes along `dim`, or an output that has another size than its inputs.
        ConfigError: No input, or a negative `chunk_size`.
        StepError: `function` returned something else than tensors.
    """
    tensors = inputs if isinstance(inputs, tuple) else (inputs,)
    if chunk_size == 0:
        return function(*tensors, *shared)

    def apply(rows: tuple[Tensor, ...]) -> Output:
        if not torch.is_grad_enabled():
            return function(*rows, *shared)
        # Whether anything trains is known only afterwards (`function` may own parameters); where nothing does,
        # autograd records nothing and checkpointing is a plain call.
        kept = checkpoint(function, *rows, *shared, use_reentrant=False, preserve_rng_state=preserve_rng_state)
        return cast(Output, kept)

    return join_rows(apply, split_rows(tensors, chunk_size, dim, "chunked_map"), dim, "chunked_map")


def split_rows(tensors: Sequence[Tensor], chunk_size: int, dim: int, where: str) -> list[tuple[Tensor, ...]]:
    """Views of the tensors, `chunk_size` rows each; the last one may have fewer.

    Args:
        tensors: Of one size along `dim`.
        chunk_size: 1 or more.
        dim: The dimension of the rows.
        where: Who asks, for the errors.

    Raises:
        ShapeError: Different sizes along `dim`.
        ConfigError: No tensor, or a `chunk_size` below 1.
    """
    if chunk_size < 1:
        raise ConfigError(f"chunk_size is {chunk_size}", where=where, do="give 1 or more, or 0 for one call")
    if not tensors:
        raise ConfigError("there is no input to take rows of", where=where)
    for tensor in tensors:
        check_rows(tensor, f"each input of {where}", tensors[0].shape[dim], dim)
    return list(zip(*(torch.split(tensor, chunk_size, dim) for tensor in tensors), strict=True))


def join_rows(
    apply: Callable[[tuple[Tensor, ...]], Output], slices: Sequence[tuple[Tensor, ...]], dim: int, where: str
) -> Output:
    """Apply a function to each slice and join its outputs: a graph's by `torch.cat`, others in place.

    Args:
        apply: Takes one of the slices.
        slices: From `split_rows`.
        dim: The dimension of the rows.
        where: Who asks, for the errors.

    Raises:
        ShapeError: An output has not as many rows as its inputs.
        StepError: `apply` returned something else than tensors.
    """
    single = False

    def parts() -> Iterator[tuple[Tensor, ...]]:
        nonlocal single
        for rows in slices:
            part = apply(rows)
            single = isinstance(part, Tensor)
            yield as_outputs(part, rows[0].shape[dim], dim, where)
            del part  # one at a time

    rest = parts()
    part: tuple[Tensor, ...] | None = next(rest)
    assert part is not None
    if any(output.requires_grad for output in part):
        joined = tuple(torch.cat(outputs, dim) for outputs in zip(part, *rest, strict=True))
    else:
        joined = tuple(_empty_like(output, sum(rows[0].shape[dim] for rows in slices), dim) for output in part)
        start = 0
        while part is not None:
            length = part[0].shape[dim]
            for whole, output in zip(joined, part, strict=True):
                whole.narrow(dim, start, length).copy_(output)
            start += length
            del part, output  # before the next one is made
            part = next(rest, None)
    return cast(Output, joined[0] if single else joined)


def as_outputs(part: object, num_rows: int, dim: int, where: str) -> tuple[Tensor, ...]:
    """What a function returned for some rows, as a tuple.

    Raises:
        ShapeError: An output has another number of rows.
        StepError: It is something else than tensors.
    """
    outputs = part if isinstance(part, tuple) else (part,)
    for output in outputs:
        if not isinstance(output, Tensor):
            inside = "a tuple with " if isinstance(part, tuple) else ""
            raise StepError(f"{where}'s function returned {inside}{type(output).__name__}, not a tensor")
        check_rows(output, f"each output of {where}'s function", num_rows, dim)
    if not outputs:
        raise StepError(f"{where}'s function returned an empty tuple, not a tensor")
    return outputs


def check_rows(tensor: Tensor, what: str, num_rows: int, dim: int) -> None:
    """Hold a tensor to a number of rows.

    Raises:
        ShapeError: It has another one.
    """
    if tensor.shape[dim:][:1] != (num_rows,):
        expected = ("...", f"{num_rows} along dim {dim}", "...")
        raise ShapeError(what, expected=expected, actual=tuple(tensor.shape))


def _empty_like(output: Tensor, num_rows: int, dim: int) -> Tensor:
    shape = list(output.shape)
    shape[dim] = num_rows
    return output.new_empty(shape)
