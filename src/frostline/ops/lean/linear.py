"""A frozen linear layer that does not keep the half-precision copy autocast makes of its weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frostline.ops.lean.function import Layout, autocast_dtype, keep_sizes


def lean_linear(module: nn.Linear, input: Tensor) -> Tensor:
    """``nn.Linear`` with frozen parameters under autocast.

    Autocast casts a frozen weight at every call, and autograd keeps the copy until backward.

    Same as: the module's own forward.

    Proof class: ``EXACT``: the same product with the same cast weight. ``torch.equal`` on the CPU, bfloat16.

    Bytes kept: 0 instead of ``2 * weight.numel()`` a call. Without autocast torch keeps nothing either, and
    this is a plain call.

    Cost: one more cast of the weight in backward.

    Args:
        module: A linear layer.
        input: ``(..., in_features)``, of two dimensions or more.
    """

    def run(x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight, module.bias)

    return keep_sizes(input, run, _gradient, module.weight)


def casts_weight(module: nn.Linear, input: Tensor) -> bool:
    """Whether autocast would make a copy of the weight for this input, and `lean_linear` knows its backward."""
    dtype = autocast_dtype(input)
    if dtype is None or module.weight.dtype == dtype:
        return False
    # torch returns the gradient of a transposed matrix transposed, by another product.
    transposed = input.dim() == 2 and input.stride() == (1, input.shape[0])
    return input.dim() >= 2 and not transposed and torch.float64 not in (input.dtype, module.weight.dtype)


def _gradient(grad: Tensor, layout: Layout, weight: Tensor) -> Tensor:
    rows = grad.reshape(-1, grad.shape[-1])
    return rows.mm(weight.to(grad.dtype)).view(layout.shape)
