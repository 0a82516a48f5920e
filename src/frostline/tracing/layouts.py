"""Operators whose real kernels lay their output out in memory otherwise than torch's shape rules say.

It decides whether a later operator copies, and how long a big storage lives under a small tensor. Each entry was found
by comparing strides and storage sizes of real and fake outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten


def as_real_kernels_do(func: Any, args: tuple[Any, ...], output: Any) -> Any:
    """The fake output of an operator, laid out as the real kernel's.

    Args:
        func: The operator.
        args: Its arguments by position.
        output: What torch's shape rules gave.
    """
    return RULES[func](output, *args) if func in RULES else output


def _contiguous(output: Tensor, *_: Any) -> Tensor:
    return output if output.is_contiguous() else output.new_empty(output.shape)


def _first_contiguous(outputs: tuple[Any, ...], *_: Any) -> tuple[Any, ...]:
    return outputs if outputs[0] is None else (_contiguous(outputs[0]), *outputs[1:])


def _first_like_input(outputs: tuple[Any, ...], grad: Tensor, values: Tensor, *_: Any) -> tuple[Any, ...]:
    return outputs if outputs[0] is None else (_like_input(outputs[0], grad, values), *outputs[1:])


def _like_input(output: Tensor, grad: Tensor, values: Tensor, *_: Any) -> Tensor:
    # Batch norm and reflection padding know two layouts.
    layout = torch.contiguous_format
    if values.dim() == 4 and values.is_contiguous(memory_format=torch.channels_last) and not values.is_contiguous():
        layout = torch.channels_last
    return torch.empty_like(output, memory_format=layout)


def _like_gradient(output: Tensor, grad: Tensor, *_: Any) -> Tensor:
    return output if grad.shape != output.shape or 0 in grad.stride() else torch.empty_like(grad, dtype=output.dtype)


def _mean_of_all(output: Tensor, values: Tensor, target: Tensor, *_: Any) -> Tensor:
    """A mean or a sum that is written where every element's loss was."""
    num_elements = torch.broadcast_shapes(values.shape, target.shape).numel()
    if output.dim() or not num_elements:
        return output
    return output.new_empty(num_elements).as_strided((), ())


def _folded(output: Tensor, columns: Tensor, *_: Any) -> Tensor:
    """An image in the storage that was made for its overlapping patches."""
    if columns.numel() <= output.numel():
        return output
    return output.new_empty(columns.numel()).as_strided(output.shape, output.stride())


RULES: dict[Any, Callable[..., Any]] = {
    _aten.native_layer_norm_backward.default: _first_contiguous,
    _aten._log_softmax_backward_data.default: _contiguous,
    _aten.native_batch_norm_backward.default: _first_like_input,
    _aten.reflection_pad2d_backward.default: _like_input,
    _aten.elu_backward.default: _like_gradient,
    _aten.softplus_backward.default: _like_gradient,
    _aten.hardswish_backward.default: _like_gradient,
    _aten.mse_loss.default: _mean_of_all,
    _aten.smooth_l1_loss.default: _mean_of_all,
    _aten.binary_cross_entropy.default: _mean_of_all,
    _aten.soft_margin_loss.default: _mean_of_all,
    _aten.col2im.default: _folded,
}
"""What makes the output anew, by operator."""
