"""Batch normalisation over the rows that are there, without taking them out of the batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frostline.errors import ConfigError, ShapeError, StepError

_NUM_CHUNKS = 16


def masked_batch_norm(
    input: Tensor,
    mask: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    training: bool = False,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise a batch by the statistics of its active rows; the other rows come out as zeros.

    Masked rows may hold anything, NaN included: they change neither output nor gradients nor statistics, and
    their own gradient is zero. No size depends on a value, so nothing waits for the device.

    Same as: ``output = zeros; output[mask] = F.batch_norm(input[mask], ...)`` with the same arguments. Two cases
    that torch refuses are defined here: without an active row nothing is updated; with a single active value a
    channel in training, the output is `bias` and nothing is updated, because one value has no variance.

    Proof class: ``ROUNDING``: the statistics are sums in another order.

    Memory: from forward to backward the input, as plain batch normalisation, and the mask. The peaks of forward
    and backward are the plain one's; the gathered copy's input, output and indices are not made.

    Cost: three more passes over the input in forward, four more in backward.

    Args:
        input: ``(N, C, *spatial)``.
        mask: Active rows ``(N,)``, bool.
        running_mean: ``(C,)``, updated in training, or None for the batch's statistics always.
        running_var: ``(C,)``, likewise.
        weight: ``(C,)`` or None.
        bias: ``(C,)`` or None.
        training: Take the batch's statistics and update the running ones.
        momentum: Weight of the new statistics; a scalar tensor is not read on the host.
        eps: Added to the variance.

    Raises:
        ShapeError: `mask` is not one row's length, or `input` has no channels.
        ConfigError: `mask` is not bool.
        StepError: In backward with ``create_graph=True``; there is no second derivative.
    """
    _check(input, mask)
    output: Tensor = _MaskedBatchNorm.apply(  # type: ignore[no-untyped-call]
        input, mask, running_mean, running_var, weight, bias, training, momentum, eps
    )
    # A node of its own: its backward zeroes the masked rows' gradient, and frees the one that came, before the
    # normalisation's backward makes another.
    return output.masked_fill_(_spread(~mask, input), 0)


class _Masked(nn.modules.batchnorm._BatchNorm):
    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise.

        Args:
            input: ``(N, C, *spatial)``.
            mask: Active rows ``(N,)``, bool; without it, the plain layer.
        """
        if mask is None:
            return super().forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        momentum: float | Tensor = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(_enough(input, mask))
            if self.momentum is None:
                momentum = 1 / self.num_batches_tracked.clamp(min=1).double()
        return masked_batch_norm(
            input,
            mask,
            self.running_mean if not self.training or self.track_running_stats else None,
            self.running_var if not self.training or self.track_running_stats else None,
            self.weight,
            self.bias,
            training=self.training or (self.running_mean is None and self.running_var is None),
            momentum=momentum,
            eps=self.eps,
        )


class MaskedBatchNorm1d(_Masked, nn.BatchNorm1d):
    """``nn.BatchNorm1d`` that takes a mask of active rows beside its input; see `masked_batch_norm`.

    Parameters, buffers and `state_dict` are the plain layer's. A batch without statistics (no active row, or one
    value a channel) does not count in `num_batches_tracked`.
    """


class MaskedBatchNorm2d(_Masked, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` that takes a mask of active rows beside its input; see `MaskedBatchNorm1d`."""


class _MaskedBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mask: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        training: bool,
        momentum: float | Tensor,
        eps: float,
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        dtype = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            if training or running_mean is None or running_var is None:
                training = True
                mean, var = _statistics(x, mask, dtype)
                if running_mean is not None and running_var is not None:
                    _update_(running_mean, running_var, mean, var, x, mask, momentum)
            else:
                mean, var = running_mean.to(dtype, copy=True), running_var.to(dtype, copy=True)
            ctx.save_for_backward(x, mask, weight, mean, var)
            ctx.training, ctx.eps, ctx.bias_dtype = training, eps, None if bias is None else bias.dtype
            scale, shift = (None if vector is None else vector.to(dtype) for vector in (weight, bias))
            return F.batch_norm(x, mean, var, scale, shift, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise StepError(
                "masked_batch_norm has no second derivative, and this backward has create_graph=True",
                do="gather the active rows and take F.batch_norm where a gradient of a gradient is needed",
            )
        x, mask, weight, mean, var = ctx.saved_tensors
        if grad is None:
            return (None,) * 9
        needs_input, needs_weight, needs_bias = (ctx.needs_input_grad[position] for position in (0, 4, 5))
        with torch.autocast(x.device.type, enabled=False):
            scale = torch.ones_like(mean) if weight is None else weight.to(mean.dtype)
            of_scale, of_shift = _vector_gradients(grad, x, mask, scale, mean, var, ctx.eps)
            of_input = None
            if needs_input and ctx.training:
                of_input = _through_statistics(grad, x, mask, scale, mean, var, ctx.eps, of_scale, of_shift)
            elif needs_input:
                of_input = _scaled(grad, scale, mean, var, ctx.eps)
        of_weight = of_scale.to(weight.dtype) if needs_weight else None
        of_bias = of_shift.to(ctx.bias_dtype) if needs_bias else None
        return of_input, None, None, None, of_weight, of_bias, None, None, None


def _statistics(x: Tensor, mask: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and biased variance ``(C,)`` of the active rows."""
    num_values, active = x.numel() // x.shape[1], _num_active(x, mask, dtype)
    count = active.clamp(min=1)
    row_means = x.mean(tuple(range(2, x.dim()))) if x.dim() > 2 else x
    row_means = torch.where(mask.unsqueeze(1), row_means, 0).to(dtype)
    # Near the mean: what is left for the kernel to sum does not cancel.
    near = (row_means.sum(0) * (num_values // max(len(x), 1)) / count).to(x.dtype)
    if x.dtype == dtype:
        centred = (x - _channels(near, x)).masked_fill_(_spread(~mask, x), 0)
        centre = torch.zeros_like(near)
    else:  # a difference would be rounded to the lower precision
        centred = torch.where(_spread(mask, x), x, _channels(near, x))
        centre = near.to(dtype)
    mean_of_all, var_of_all = torch.zeros_like(near, dtype=dtype), torch.zeros_like(near, dtype=dtype)
    if num_values > 1:
        torch.batch_norm_update_stats(centred, mean_of_all, var_of_all, 1.0)
    elif num_values == 1:
        mean_of_all = centred.reshape(-1).to(dtype)
    var_of_all *= (num_values - 1) / max(num_values, 1)
    offset, num_masked = mean_of_all - centre, num_values - active
    squares = (var_of_all * num_values - num_masked * offset.square()) / count
    mean = near.to(dtype) + offset * num_values / count
    return mean, (squares - (offset * num_masked / count).square()).clamp_(min=0)


def _update_(
    running_mean: Tensor,
    running_var: Tensor,
    mean: Tensor,
    var: Tensor,
    x: Tensor,
    mask: Tensor,
    momentum: float | Tensor,
) -> None:
    active, enough = _num_active(x, mask, var.dtype), _enough(x, mask)
    unbiased = var * (active / (active - 1).clamp(min=1))
    for running, new in ((running_mean, mean), (running_var, unbiased)):
        updated = momentum * new + (1 - momentum) * running
        running.copy_(torch.where(enough, updated, running))


def _vector_gradients(
    grad: Tensor, x: Tensor, mask: Tensor, scale: Tensor, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The sums over the active rows of ``grad * normalised`` and of `grad`, whose masked rows are zero."""
    filled = torch.where(_spread(mask, x), x, _channels(mean.to(x.dtype), x))  # 0 times NaN would be NaN
    needs = (False, True, True)
    backward = torch.ops.aten.native_batch_norm_backward
    _, of_scale, of_shift = backward(grad, filled, scale, mean, var, None, None, False, eps, needs)
    return of_scale, of_shift


def _through_statistics(
    grad: Tensor,
    x: Tensor,
    mask: Tensor,
    scale: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float,
    of_scale: Tensor,
    of_shift: Tensor,
) -> Tensor:
    """``scale / std * (grad - mean(grad) - normalised * mean(grad * normalised))``, in one new buffer."""
    slope = scale * (var + eps).rsqrt()
    share = -slope / _num_active(x, mask, var.dtype).clamp(min=1)
    gradient = F.batch_norm(x, mean, var, share * of_scale, share * of_shift, training=False, eps=eps)
    if x.dtype == var.dtype:
        gradient.addcmul_(grad, _channels(slope, x))
    else:  # the product in the statistics' precision, a few rows at a time
        for rows, grad_rows in zip(gradient.chunk(_NUM_CHUNKS), grad.chunk(_NUM_CHUNKS), strict=True):
            rows.add_(_scaled(grad_rows, scale, mean, var, eps))
    return gradient.masked_fill_(_spread(~mask, x), 0)


def _scaled(grad: Tensor, scale: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """``grad * scale / std``."""
    needs = (True, False, False)
    backward = torch.ops.aten.native_batch_norm_backward
    gradient: Tensor = backward(grad, grad, scale, mean, var, None, None, False, eps, needs)[0]
    return gradient


def _num_active(x: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Active values of each channel, a scalar on the device."""
    return mask.sum().to(dtype) * (x[:1, :1].numel())


def _enough(x: Tensor, mask: Tensor) -> Tensor:
    """Whether there are values enough for a variance."""
    return mask.sum() * x[:1, :1].numel() > 1


def _spread(mask: Tensor, like: Tensor) -> Tensor:
    return mask.view(-1, *[1] * (like.dim() - 1))


def _channels(vector: Tensor, like: Tensor) -> Tensor:
    return vector.view(-1, *[1] * (like.dim() - 2))


def _check(input: Tensor, mask: Tensor) -> None:
    where = "masked_batch_norm"
    if input.dim() < 2:
        raise ShapeError("input", expected=("N", "C", "..."), actual=tuple(input.shape), where=where)
    if mask.dtype != torch.bool:
        raise ConfigError(f"mask is of type {mask.dtype}", where=where, do="give a bool mask, True for active rows")
    if mask.shape != input.shape[:1]:
        raise ShapeError("mask", expected=(len(input),), actual=tuple(mask.shape), where=where)
