"""Cross-entropy over a large vocabulary without ever holding all the logits."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from frostline.errors import ConfigError, ShapeError, StepError


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    chunk_tokens: int = 64,
    ignore_index: int = -100,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Cross-entropy of a linear layer's outputs, a few tokens at a time.

    The gradients are made in forward, while a chunk's logits are there, and only scaled in backward.

    Same as: ``F.cross_entropy(F.linear(hidden, weight, bias).float(), target)`` with this `ignore_index`
    and `reduction` (no ``float()`` for float64). The linear layer follows autocast, the loss stays float32.

    Proof class: ``ROUNDING``.

    Memory: one chunk's logits in float32 (half-precision inputs: and once more in their own type) instead of
    two to three copies of all of them. From forward to backward, the gradient of `hidden` in its own type; of
    `weight` and `bias`, where they train, in float32. Nothing is kept when no gradient is wanted.

    Cost: the matrix products of the plain loss and no more; a trainable `weight` has its gradient summed in
    float32, which is slower than half precision on a GPU.

    Args:
        hidden: Features ``(..., D)``.
        weight: The output embedding ``(V, D)``, tied or not, frozen or trainable.
        target: Class indices ``(...)``.
        bias: ``(V,)``.
        chunk_tokens: Tokens whose logits are alive at once; 0 runs the plain loss.
        ignore_index: Target of tokens that do not count.
        reduction: The mean over the tokens that count (nan where none does), or the sum.

    Returns:
        A scalar in float32; in float64 for float64 inputs.

    Raises:
        ShapeError: The shapes do not agree.
        ConfigError: A negative `chunk_tokens` or another `reduction`.
        StepError: In backward with ``create_graph=True``; only the plain loss has a second derivative.
    """
    _check(hidden, weight, target, bias, chunk_tokens, reduction)
    if chunk_tokens == 0:
        logits = F.linear(hidden, weight, bias).reshape(-1, len(weight))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, target.reshape(-1), ignore_index=ignore_index, reduction=reduction)
    loss: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        _as_linear_takes(hidden.reshape(-1, hidden.shape[-1])),
        _as_linear_takes(weight),
        None if bias is None else _as_linear_takes(bias),
        target.reshape(-1),
        chunk_tokens,
        ignore_index,
        reduction == "mean",
        torch.is_grad_enabled(),
    )
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        chunk_tokens: int,
        ignore_index: int,
        mean: bool,
        grad_enabled: bool,
    ) -> Tensor:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        # needs_input_grad does not know about no_grad.
        hidden_trains, weight_trains, bias_trains = (grad_enabled and need for need in ctx.needs_input_grad[:3])
        loss = hidden.new_zeros((), dtype=dtype)
        grad_hidden = torch.empty_like(hidden) if hidden_trains else None
        grad_weight = torch.zeros_like(weight, dtype=dtype) if weight_trains else None
        grad_bias = weight.new_zeros(len(weight), dtype=dtype) if bias_trains else None

        for start in range(0, len(target), chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            counts = target[rows] != ignore_index
            # One buffer: the logits, the shifted logits, the probabilities, the gradient of the logits.
            chunk = F.linear(hidden[rows], weight, bias).to(dtype)
            chunk.sub_(chunk.amax(dim=1, keepdim=True))
            loss += F.nll_loss(chunk, target[rows], ignore_index=ignore_index, reduction="sum")
            normaliser = chunk.exp_().sum(dim=1)
            loss += torch.where(counts, normaliser.log(), 0).sum()
            if not (hidden_trains or weight_trains or bias_trains):
                continue
            chunk.mul_((counts / normaliser).unsqueeze(1))
            chunk.scatter_add_(1, (target[rows] * counts).unsqueeze(1), -counts.to(dtype).unsqueeze(1))
            if grad_hidden is not None:
                torch.mm(chunk.to(weight.dtype), weight, out=grad_hidden[rows])
            if grad_weight is not None:
                grad_weight.addmm_(chunk.t(), hidden[rows].to(dtype))
            if grad_bias is not None:
                grad_bias += chunk.sum(dim=0)
            del chunk  # before the next one is made

        num_tokens = (target != ignore_index).sum().to(dtype) if mean else torch.ones_like(loss)
        # Scaled in backward, together with the loss scale: a mean's gradient alone underflows in float16.
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias, num_tokens.clamp(min=1))
        ctx.dtype = hidden.dtype
        return loss / num_tokens

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise StepError(
                "chunked_cross_entropy has no second derivative, and this backward has create_graph=True",
                do="take chunk_tokens=0, the plain loss, where a gradient of a gradient is needed",
            )
        *gradients, num_tokens = ctx.saved_tensors
        scale = grad_output / num_tokens
        scaled = (None if grad is None else (grad.to(scale.dtype) * scale).to(ctx.dtype) for grad in gradients)
        return (*scaled, None, None, None, None, None)


def _as_linear_takes(tensor: Tensor) -> Tensor:
    """The cast that autocast would make inside ``F.linear``, made once instead of once a chunk."""
    device_type = tensor.device.type
    if torch.is_autocast_enabled(device_type) and tensor.dtype != torch.float64:
        return tensor.to(torch.get_autocast_dtype(device_type))
    return tensor


def _check(
    hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, chunk_tokens: int, reduction: str
) -> None:
    where = "chunked_cross_entropy"
    if weight.dim() != 2 or hidden.shape[-1:] != weight.shape[1:]:
        width = hidden.shape[-1] if hidden.dim() else "D"
        raise ShapeError("weight", expected=("V", width), actual=tuple(weight.shape), where=where)
    if target.shape != hidden.shape[:-1]:
        raise ShapeError("target", expected=tuple(hidden.shape[:-1]), actual=tuple(target.shape), where=where)
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError("bias", expected=(len(weight),), actual=tuple(bias.shape), where=where)
    if chunk_tokens < 0:
        raise ConfigError(f"chunk_tokens is {chunk_tokens}", where=where, do="give 1 or more, or 0 for the plain loss")
    if reduction not in ("mean", "sum"):
        raise ConfigError(f"reduction is {reduction!r}", where=where, do="take 'mean' or 'sum'")
