"""One autograd function for every layer whose input gradient needs the input's sizes and not its values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from frostline.errors import StepError


@dataclass(frozen=True)
class Layout:
    """Where a tensor's values lay, without the values: what torch's kernels choose their path by."""

    shape: torch.Size
    strides: tuple[int, ...]
    memory_format: torch.memory_format

    @staticmethod
    def of(x: Tensor) -> Layout:
        """The layout of `x`; holds no tensor."""
        return Layout(x.shape, x.stride(), suggest_memory_format(x))

    def stand_in(self, grad: Tensor) -> Tensor:
        """A tensor of this layout and of `grad`'s type, whose values mean nothing and must not be written."""
        extent = 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        # The gradient's own memory serves where it is large enough: then nothing is allocated.
        large_enough = grad.untyped_storage().nbytes() >= extent * grad.element_size()
        return torch.as_strided(grad if large_enough else grad.new_empty(extent), self.shape, self.strides, 0)

    def empty(self, grad: Tensor) -> Tensor:
        """A new dense tensor in the memory format that torch gives the gradient of such an input."""
        return torch.empty(self.shape, dtype=grad.dtype, device=grad.device, memory_format=self.memory_format)


def keep_sizes(
    x: Tensor,
    run: Callable[..., Tensor],
    gradient: Callable[..., Tensor],
    *kept: Tensor | None,
) -> Tensor:
    """Call ``run(x, *kept)`` and keep `kept` and the layout of `x`, not `x`.

    Proof class: ``EXACT`` where `gradient` calls the kernel that plain torch calls, with a stand-in for `x`.

    Args:
        x: The input that wants a gradient ``(...)``.
        run: The plain forward.
        gradient: Called as ``gradient(grad, layout, *kept)``; holds no tensor itself.
        kept: Tensors that need no gradient, such as the frozen weight.

    Raises:
        StepError: In backward with ``create_graph=True``.
    """
    output: Tensor = _KeepSizes.apply(x, run, gradient, *kept)  # type: ignore[no-untyped-call]
    return output


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The type that autocast casts to on the device of `x`; None where it is not enabled."""
    kind = x.device.type
    enabled = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if enabled else None


def refuse_second_derivative() -> None:
    """Stop a backward that is itself recorded: a lean layer would silently be a constant in it.

    Raises:
        StepError: Grad mode is enabled.
    """
    if torch.is_grad_enabled():
        raise StepError(
            "a lean layer has no second derivative, and this backward has create_graph=True",
            do="call remove() on what lean_ returned, or leave this part of the model out of lean_",
        )


class _KeepSizes(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, run: Callable[..., Tensor], gradient: Callable[..., Tensor], *kept: Tensor | None
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*kept)
        ctx.gradient, ctx.layout, ctx.dtype = gradient, Layout.of(x), x.dtype
        return run(x, *kept)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        kept = ctx.saved_tensors  # read even without a gradient: this is where a changed weight raises
        if grad is not None:
            grad = ctx.gradient(grad, ctx.layout, *kept).to(ctx.dtype)
        return (grad, None, None, *(None for _ in kept))
