"""Frozen normalisation that keeps less than torch does."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frostline.ops.lean.function import Layout, autocast_dtype, keep_sizes, refuse_second_derivative

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def lean_batch_norm(module: BatchNorm, input: Tensor) -> Tensor:
    """``nn.BatchNorm1d``, ``nn.BatchNorm2d`` or ``nn.BatchNorm3d`` in eval mode with frozen parameters.

    Same as: the module's own forward.

    Proof class: ``EXACT``: backward is torch's own kernel, whose input gradient in eval mode is a scaling of
    the output gradient. ``torch.equal`` on the CPU in float64, float32 and bfloat16.

    Bytes kept: 0 instead of the input's ``element_size * input.numel()``; weight and statistics are the
    module's own.

    Cost: none.

    Args:
        module: A batch normalisation in eval mode, with running statistics.
        input: ``(N, C, *spatial)``.
    """
    module._check_input_dim(input)

    def run(x: Tensor, weight: Tensor | None, mean: Tensor, var: Tensor) -> Tensor:
        return F.batch_norm(x, mean, var, weight, module.bias, training=False, eps=module.eps)

    gradient = partial(_batch_norm_gradient, module.eps)
    return keep_sizes(input, run, gradient, module.weight, module.running_mean, module.running_var)


def lean_rms_norm(module: nn.RMSNorm, input: Tensor) -> Tensor:
    """``nn.RMSNorm`` with a frozen weight and a half-precision input on the CPU.

    Same as: the module's own forward.

    Proof class: ``EXACT``: backward runs the plain forward and backward again. ``torch.equal`` on the CPU in
    bfloat16.

    Bytes kept: the input, ``2 * input.numel()``, instead of a float32 copy of it, ``4 * input.numel()``, and
    4 for each row. In float32, and in CUDA's fused kernel, torch keeps the input itself.

    Cost: one more forward of the layer.

    Args:
        module: A root mean square normalisation.
        input: ``(..., *normalized_shape)``.
    """
    run = partial(_rms_norm, tuple(module.normalized_shape), module.eps)
    output: Tensor = _KeepInput.apply(input, module.weight, run)  # type: ignore[no-untyped-call]
    return output


def _batch_norm_gradient(
    eps: float, grad: Tensor, layout: Layout, weight: Tensor | None, mean: Tensor, var: Tensor
) -> Tensor:
    needs = (True, False, False)
    backward = torch.ops.aten.native_batch_norm_backward
    gradient: Tensor = backward(grad, layout.stand_in(grad), weight, mean, var, None, None, False, eps, needs)[0]
    return gradient


def _rms_norm(shape: tuple[int, ...], eps: float | None, x: Tensor, weight: Tensor | None) -> Tensor:
    return F.rms_norm(x, shape, weight, eps)


class _KeepInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, run: Any) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight)
        dtype = autocast_dtype(x)
        ctx.run, ctx.autocast = run, partial(torch.autocast, x.device.type, dtype, enabled=dtype is not None)
        output: Tensor = run(x, weight)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        x, weight = ctx.saved_tensors
        if grad is not None:
            x = x.detach().requires_grad_()
            with torch.enable_grad(), ctx.autocast():
                output = ctx.run(x, weight)
            (grad,) = torch.autograd.grad(output, x, grad)
        return grad, None, None
