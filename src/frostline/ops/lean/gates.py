"""ReLU and its kin, which need one bit an element: whether the gradient passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frostline.ops.lean.function import refuse_second_derivative

# Eight bytes of 0 or 1, read as one number and multiplied by this, have their bits side by side in the top byte.
_GATHER = 0x0102040810204080
# And back: one byte repeated eight times, its bit k alone in byte k, carried to the top of the byte, moved to 1.
_REPEAT = 0x0101010101010101
_ONE_BIT_A_BYTE = 0x8040201008040201 - (1 << 64)
_CARRY = 0x00406070787C7E7F


def lean_relu(module: nn.ReLU, input: Tensor) -> Tensor:
    """``nn.ReLU``, in place or not.

    Same as: the module's own forward, NaN and infinite gradients included.

    Proof class: ``EXACT``. ``torch.equal`` on the CPU in float64, float32 and bfloat16.

    Bytes kept: ``ceil(numel / 8)`` instead of the output's ``element_size * numel``. The output still stays
    where the next layer keeps it.

    Cost: in forward a comparison and two passes over one byte an element, in backward five and a cast.

    Args:
        module: A ReLU.
        input: ``(...)``.
    """
    return _gate(input, lambda x: F.relu(x, module.inplace), lambda _, y: y <= 0, None, module.inplace)


def lean_hardtanh(module: nn.Hardtanh, input: Tensor) -> Tensor:
    """``nn.Hardtanh`` and ``nn.ReLU6``, in place or not.

    Same as, proof class, bytes kept and cost: as `lean_relu`, with the input in the output's place. Where the
    input is NaN the gradient passes; torch's CPU kernel stops it or not by its place in the tensor.

    Args:
        module: A Hardtanh or a ReLU6.
        input: ``(...)``.
    """
    low, high = module.min_val, module.max_val

    def run(x: Tensor) -> Tensor:
        return F.hardtanh(x, low, high, module.inplace)

    return _gate(input, run, lambda _, y: (y <= low).logical_or_(y >= high), None, module.inplace)


def lean_leaky_relu(module: nn.LeakyReLU, input: Tensor) -> Tensor:
    """``nn.LeakyReLU``, in place or not.

    Same as, proof class, bytes kept and cost: as `lean_relu`, with the input in the output's place.

    Args:
        module: A LeakyReLU.
        input: ``(...)``.
    """
    slope = module.negative_slope

    def run(x: Tensor) -> Tensor:
        return F.leaky_relu(x, slope, module.inplace)

    def closed(x: Tensor, y: Tensor) -> Tensor:
        return ((y if module.inplace else x) > 0).logical_not_()

    return _gate(input, run, closed, slope, module.inplace)


def _gate(
    x: Tensor,
    run: Callable[[Tensor], Tensor],
    closed: Callable[[Tensor, Tensor], Tensor],
    slope: float | None,
    inplace: bool,
) -> Tensor:
    if inplace and (x.is_leaf or x._is_view()):
        return run(x)  # torch refuses the one, and follows the other's base as no function of ours can
    output: Tensor = _Gate.apply(x, run, closed, slope, inplace)  # type: ignore[no-untyped-call]
    return output


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        run: Callable[[Tensor], Tensor],
        closed: Callable[[Tensor, Tensor], Tensor],
        slope: float | None,
        inplace: bool,
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        y = run(x)
        if inplace:
            ctx.mark_dirty(x)
        mask = closed(x, y)
        ctx.shape, ctx.strides, ctx.slope = mask.shape, mask.stride(), slope
        ctx.save_for_backward(_pack(mask))
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        if grad is not None:
            (bits,) = ctx.saved_tensors
            # 1 where the gradient passes and 0 where not: torch's kernels see a 1 as they saw the values there.
            passes = _unpack(bits, ctx.shape.numel()).as_strided(ctx.shape, ctx.strides).to(grad.dtype)
            if ctx.slope is not None:
                grad = torch.ops.aten.leaky_relu_backward.grad_input(grad, passes, ctx.slope, False, grad_input=passes)
            else:
                grad = torch.ops.aten.threshold_backward.grad_input(grad, passes, 0, grad_input=passes)
        return grad, None, None, None, None


def _pack(mask: Tensor) -> Tensor:
    """Eight elements of a mask a byte, in the order they lie in memory, negated; the mask is used up."""
    flat = mask.as_strided((mask.numel(),), (1,))  # what a comparison returns is dense
    if flat.numel() % 8:
        flat = F.pad(flat, (0, -flat.numel() % 8))
    words = flat.view(torch.int64).mul_(_GATHER).bitwise_right_shift_(56)
    return words.to(torch.uint8).bitwise_not_()


def _unpack(bits: Tensor, num_elements: int) -> Tensor:
    """The negated mask as bytes of 0 or 1."""
    words = bits.to(torch.int64).mul_(_REPEAT).bitwise_and_(_ONE_BIT_A_BYTE)
    return words.add_(_CARRY).bitwise_right_shift_(7).bitwise_and_(_REPEAT).view(torch.uint8)[:num_elements]
