"""One batch in several backwards, with the gradient of one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from frostline.errors import ConfigError, ShapeError, StepError

_WHERE = "backward_in_micro_batches"
_PLAIN = (str, bytes, int, float, bool, type(None))

Batch = TypeVar("Batch")


def backward_in_micro_batches(
    loss: Callable[[Batch], Tensor | tuple[Tensor, int | Tensor]],
    batch: Batch,
    *,
    micro_batch_size: int,
    count: Callable[[Batch], int | float | Tensor],
    scaler: torch.amp.GradScaler | None = None,
) -> Tensor:
    """Forward and backward over a few samples at a time; gradients add up to those of the whole batch's mean.

    A mean over all samples, tokens or pixels that count is a sum over each micro-batch, divided by the count
    of the **whole** batch. A mean of the micro-batches' means is something else as soon as they differ in what
    counts: a short last micro-batch, ignored tokens.

    Same as: ``(loss(batch).sum() / count(batch)).backward()``, provided that samples do not influence each
    other (no batch statistics, no negatives from the batch) and that what `loss` returns is only what is summed
    over samples: a penalty on weights, say, goes into a backward of its own. Random numbers are drawn
    micro-batch by micro-batch: with dropout the masks are other ones, and the gradient is equal in
    distribution only.

    Proof class: ``ROUNDING``: the same sums in another order.

    Memory: the activations of one micro-batch instead of the whole batch's, beside the gradients.

    Cost: none but smaller kernels. Nothing is recomputed.

    Args:
        loss: Returns, for some of the samples, losses of any shape that are summed here, or their sum; ignored
            ones as 0 (``F.cross_entropy(..., ignore_index=-100, reduction="sum")``). Or that and its count,
            which is then compared. It opens autocast itself where it wants it.
        batch: Nested dicts, tuples and lists. Tensors have samples along dimension 0, and a list of plain
            values has one each; other plain values and tensors without dimensions go to every micro-batch.
        micro_batch_size: Samples a backward; the last one may have fewer.
        count: What the whole batch's sum is divided by: its samples, the tokens that count
            (``lambda batch: (batch["labels"] != -100).sum()``), or the sum of class weights. It must be
            additive over samples.
        scaler: Scales every backward, by the same factor; `step` and `update` remain the caller's, once.

    Returns:
        The whole batch's loss without a graph: a scalar in float32 (float64 for float64 losses), nan where
        nothing counts. Gradients are then 0.

    Raises:
        ConfigError: A `micro_batch_size` below 1, or a batch with nothing to split or of a type it cannot split.
        ShapeError: Tensors of different sizes along dimension 0.
        StepError: `loss` returned something else, or a loss without a gradient, or counts that do not add up
            to `count(batch)`, which would weight the gradient wrongly. Gradients are incomplete then.
    """
    if micro_batch_size < 1:
        raise ConfigError(f"micro_batch_size is {micro_batch_size}", where=_WHERE, do="give 1 or more")
    num_samples = _num_samples(batch)
    total = _number(count(batch))
    weight = 1 / total if total else 1.0
    loss_sum: Tensor | None = None
    counted: float | None = None
    for start in range(0, num_samples, micro_batch_size):
        part_sum, part_count = _read(loss(_rows(batch, slice(start, start + micro_batch_size))))
        scaled = part_sum * weight
        (scaled if scaler is None else scaler.scale(scaled)).backward()
        loss_sum = part_sum.detach() if loss_sum is None else loss_sum + part_sum.detach()
        if part_count is not None:
            counted = (counted or 0.0) + part_count
        del part_sum, scaled  # before the next graph is made
    if counted is not None and abs(counted - total) > 1e-6 * max(abs(total), 1.0):
        raise StepError(
            f"the micro-batches count {counted:g}, count(batch) says {total:g}: the gradient is off by the ratio",
            where=_WHERE,
            do="let count and loss count the same; discard these gradients",
        )
    assert loss_sum is not None
    return loss_sum / total


def _read(returned: Any) -> tuple[Tensor, float | None]:
    losses, count = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, None)
    if not isinstance(losses, Tensor):
        raise StepError(
            f"the loss is {type(returned).__name__}",
            where=_WHERE,
            do="return the losses or their sum as a tensor, with or without their count",
        )
    if not losses.requires_grad:
        raise StepError("the loss of a micro-batch depends on nothing that trains", where=_WHERE)
    losses = losses.to(torch.promote_types(losses.dtype, torch.float32))
    return losses.sum(), None if count is None else _number(count)


def _number(count: int | float | Tensor) -> float:
    return float(count.detach()) if isinstance(count, Tensor) else float(count)


def _num_samples(batch: Any) -> int:
    sizes = list(_sizes(batch))
    if not sizes:
        raise ConfigError("the batch has nothing to split", where=_WHERE, do="give tensors of one sample a row")
    num_samples = sizes[0][1]
    for what, size in sizes:
        if size != num_samples:
            raise ShapeError(
                f"{what} of the batch",
                expected=(num_samples, "..."),
                actual=(size,),
                where=_WHERE,
                do="let the loss function hold on to what is not one row a sample",
            )
    if num_samples == 0:
        raise ConfigError("the batch has no samples", where=_WHERE)
    return num_samples


def _sizes(value: Any, what: str = "a tensor") -> Iterator[tuple[str, int]]:
    if isinstance(value, Tensor):
        if value.dim():
            yield what, len(value)
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _sizes(entry, f"{key!r}")
    elif _is_column(value):
        yield f"the list {what}" if what != "a tensor" else "a list", len(value)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _sizes(entry, what)
    elif not isinstance(value, _PLAIN):
        raise ConfigError(
            f"{what} of the batch is a {type(value).__name__}, which cannot be split",
            where=_WHERE,
            do="give dicts, tuples, lists and tensors: dict(batch) for a mapping of another type",
        )


def _is_column(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, _PLAIN) for entry in value)


def _rows(value: Any, rows: slice) -> Any:
    if isinstance(value, Tensor):
        return value[rows] if value.dim() else value
    if isinstance(value, dict):
        part = copy.copy(value)
        part.update({key: _rows(entry, rows) for key, entry in value.items()})
        return part
    if _is_column(value):
        return value[rows]
    if isinstance(value, (list, tuple)):
        parts = [_rows(entry, rows) for entry in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value
