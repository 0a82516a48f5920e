"""Batch statistics over all processes of a run, for batches that are small on each of them."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F


def normalise_together(
    raw: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    running: tuple[Tensor, Tensor] | None = None,
    momentum: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise by the statistics of the rows that all processes have; alone, by one's own.

    All processes call it at the same point, also those that have no row. Each exchanges twice: two numbers a channel
    and a count in forward, two numbers a channel in backward.

    Same as: batch normalisation of all processes' rows in one batch. The gradients of `weight` and `bias` are those
    of one's own rows, to be summed like every other gradient.

    Proof class: ``ROUNDING``: the statistics are sums in another order.

    Args:
        raw: ``(n, C, H, W)``; n may be 0.
        weight: ``(C,)``.
        bias: ``(C,)``.
        eps: Added to the variance.
        running: Mean and variance to update; left alone where there is one value a channel over all processes.
        momentum: Weight of the new ones.

    Returns:
        What is normalised; the mean and the variance by which it was.
    """
    out, mean, var, count = _Together.apply(raw, weight, bias, eps)  # type: ignore[no-untyped-call]
    if running is not None:
        _update_(running, mean, var, count, momentum)
    return out, mean, var


def track_together_(raw: Tensor, running: tuple[Tensor, Tensor], momentum: float) -> None:
    """Update running statistics by the rows of all processes, and do nothing else."""
    mean, var, count = _statistics(raw.detach())
    _update_(running, mean, var, count, momentum)


def normalise_by(raw: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalise by given statistics."""
    if len(raw) == 0:
        return raw.clone()
    return F.batch_norm(raw, mean, var, weight, bias, training=False, eps=eps)


class _Together(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, raw: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        mean, var, count = _statistics(raw)
        ctx.eps = eps
        ctx.save_for_backward(raw, weight, mean, var, count)
        ctx.mark_non_differentiable(mean, var, count)
        ctx.set_materialize_grads(False)
        return normalise_by(raw, mean, var, weight, bias, eps), mean, var, count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        raw, weight, mean, var, count = ctx.saved_tensors
        grad = torch.zeros_like(raw) if grad is None else grad
        backward = torch.ops.aten.native_batch_norm_backward
        of_weight, of_bias = torch.zeros_like(weight), torch.zeros_like(weight)
        given = (raw, weight, mean, var, None, None, False, ctx.eps)
        if len(raw):
            _, of_weight, of_bias = backward(grad, *given, (False, True, True))
        sums = _sum(torch.stack([of_weight, of_bias]).double())
        if not ctx.needs_input_grad[0]:
            return None, of_weight, of_bias, None
        if len(raw) == 0:
            return torch.zeros_like(raw), of_weight, of_bias, None
        slope = weight * (var + ctx.eps).rsqrt()
        shares = (-slope / count.clamp(min=1) * sums).to(mean.dtype)
        of_raw = normalise_by(raw, mean, var, shares[0], shares[1], ctx.eps)
        return of_raw.add_(backward(grad, *given, (True, False, False))[0]), of_weight, of_bias, None


def _statistics(raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance ``(C,)`` over all processes' rows, and how many values a channel these are."""
    dtype = torch.promote_types(raw.dtype, torch.float32)
    mean, var = (torch.zeros(raw.shape[1], dtype=dtype, device=raw.device) for _ in range(2))
    count = _count(raw)
    num = raw.numel() // raw.shape[1]
    if num > 1:
        torch.batch_norm_update_stats(raw, mean, var, 1.0)
        var *= (num - 1) / num
    elif num == 1:
        mean = raw.reshape(-1).to(dtype)
    first, second = mean.double() * count, (var.double() + mean.double().square()) * count
    packed = _sum(torch.cat([first, second, count.view(1)]))
    first, second, count = packed[: len(mean)], packed[len(mean) : -1], packed[-1]
    whole = first / count.clamp(min=1)
    return whole.to(dtype), (second / count.clamp(min=1) - whole.square()).clamp(min=0).to(dtype), count


def _update_(running: tuple[Tensor, Tensor], mean: Tensor, var: Tensor, count: Tensor, momentum: float) -> None:
    with torch.no_grad():
        unbiased = var.double() * count / (count - 1).clamp(min=1)
        for old, new in zip(running, (mean, unbiased), strict=True):
            old.copy_(torch.where(count > 1, old + momentum * (new.to(old.dtype) - old), old))


def _count(raw: Tensor) -> Tensor:
    return torch.tensor(raw.numel() // raw.shape[1], dtype=torch.float64, device=raw.device)


def _sum(values: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values
