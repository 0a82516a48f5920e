"""Frozen convolutions that keep their weight and nothing else, padding included."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frostline.ops.lean.function import Layout, keep_sizes
from frostline.ops.lean.padding import lean_pad

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
TransposedConvolution = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d

_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


def lean_convolution(module: Convolution, input: Tensor) -> Tensor:
    """``nn.Conv1d``, ``nn.Conv2d`` or ``nn.Conv3d`` with frozen parameters.

    Same as: the module's own forward, with every padding and padding mode, and under autocast.

    Proof class: ``EXACT``: backward is torch's kernel for the input gradient, which reads no input value.
    ``torch.equal`` on the CPU in float64, float32 and bfloat16.

    Bytes kept: 0 instead of the input's, ``element_size * input.numel()``, or of the padded input's. Under
    autocast also 0 instead of the cast weight, which is cast again in backward. In backward, an uninitialised
    buffer of the input's size for one layer at a time where the output is smaller than the input.

    Cost: none; under autocast, one more cast of the weight.

    Args:
        module: A convolution.
        input: ``(N, C, *spatial)`` or ``(C, *spatial)``.
    """
    dims = len(module.kernel_size)
    x, padding = _pad(module, input, dims)
    settings = (module.stride, padding, module.dilation, False, (0,) * dims, module.groups)

    def run(x: Tensor, weight: Tensor) -> Tensor:
        convolve = _CONVOLUTIONS[dims - 1]
        return convolve(x, weight, module.bias, module.stride, padding, module.dilation, module.groups)

    return _convolve(module, x, dims, run, settings)


def lean_transposed_convolution(
    module: TransposedConvolution, input: Tensor, output_size: list[int] | None = None
) -> Tensor:
    """``nn.ConvTranspose1d``, ``nn.ConvTranspose2d`` or ``nn.ConvTranspose3d`` with frozen parameters.

    Same as, proof class, bytes kept and cost: as `lean_convolution`.

    Args:
        module: A transposed convolution.
        input: ``(N, C, *spatial)`` or ``(C, *spatial)``.
        output_size: As of the module's forward.
    """
    dims = len(module.kernel_size)
    stride, padding, dilation = (_ints(value) for value in (module.stride, module.padding, module.dilation))
    kernel = list(module.kernel_size)
    output_padding = _ints(
        module._output_padding(input, output_size, list(stride), list(padding), kernel, dims, list(dilation))
    )
    settings = (stride, padding, dilation, True, output_padding, module.groups)

    def run(x: Tensor, weight: Tensor) -> Tensor:
        convolve = _TRANSPOSED[dims - 1]
        return convolve(x, weight, module.bias, stride, padding, output_padding, module.groups, dilation)

    return _convolve(module, input, dims, run, settings)


def _ints(values: Any) -> tuple[int, ...]:
    return tuple(values)


def _convolve(module: Any, x: Tensor, dims: int, run: Any, settings: tuple[Any, ...]) -> Tensor:
    gradient = partial(_gradient, settings, None if module.bias is None else list(module.bias.shape))
    if x.dim() == dims + 1:  # no batch: torch adds a dimension of 1 in the same place
        return keep_sizes(x.unsqueeze(0), run, gradient, module.weight).squeeze(0)
    return keep_sizes(x, run, gradient, module.weight)


def _gradient(
    settings: tuple[Any, ...], bias_sizes: list[int] | None, grad: Tensor, layout: Layout, weight: Tensor
) -> Tensor:
    needs = (True, False, False)
    # The weight in the type that autocast gave it in forward, which the gradient has too.
    args = (grad, layout.stand_in(grad), weight.to(grad.dtype), bias_sizes, *settings, needs)
    gradient: Tensor = torch.ops.aten.convolution_backward(*args)[0]
    return gradient


def _pad(module: Convolution, x: Tensor, dims: int) -> tuple[Tensor, tuple[int, ...]]:
    """The input and the zeros to put on both sides of it, where the module may pad in any other way."""
    if module.padding_mode != "zeros":
        return lean_pad(x, tuple(module._reversed_padding_repeated_twice), module.padding_mode), (0,) * dims
    if not isinstance(module.padding, str):
        return x, tuple(module.padding)
    if module.padding == "valid":
        return x, (0,) * dims
    total = [dilation * (size - 1) for dilation, size in zip(module.dilation, module.kernel_size, strict=True)]
    # An even kernel wants one zero more on the right, as in torch.
    uneven = [side for zeros in reversed(total) for side in (0, zeros % 2)]
    return F.pad(x, uneven) if any(uneven) else x, tuple(zeros // 2 for zeros in total)
