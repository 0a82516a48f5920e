"""Pooling that keeps sizes, or for a maximum where in its window it lay."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frostline.ops.lean.function import Layout, autocast_dtype, keep_sizes, refuse_second_derivative

MaxPool = nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d
AvgPool = nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d
AdaptiveAvgPool = nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d | nn.AdaptiveAvgPool3d


def lean_max_pool(module: MaxPool, input: Tensor) -> Tensor:
    """``nn.MaxPool1d``, ``nn.MaxPool2d`` or ``nn.MaxPool3d`` with at most 256 places in a window.

    Same as: the module's own forward, NaN included.

    Proof class: ``EXACT``: backward is torch's own kernel. ``torch.equal`` on the CPU in float64, float32 and
    bfloat16.

    Bytes kept: ``output.numel()`` instead of ``8 * output.numel()`` and the input's
    ``element_size * input.numel()``. In backward, the indices of one layer at a time.

    Cost: two passes over the output's elements in forward, three in backward.

    Args:
        module: A maximum pooling that does not return indices.
        input: ``(N, C, *spatial)`` or ``(C, *spatial)``.
    """
    dims = _num_dims(module)
    window = _Window(
        _of_each_dim(module.kernel_size, dims),
        _of_each_dim(module.stride, dims),
        _of_each_dim(module.padding, dims),
        _of_each_dim(module.dilation, dims),
        module.ceil_mode,
    )
    if dims == 1:  # as in torch, a picture of one row
        return _max_pool(input.unsqueeze(-2), window.of_one_row()).squeeze(-2)
    return _max_pool(input, window)


def lean_avg_pool(module: AvgPool, input: Tensor) -> Tensor:
    """``nn.AvgPool1d``, ``nn.AvgPool2d`` or ``nn.AvgPool3d``.

    Same as: the module's own forward.

    Proof class: ``EXACT``: backward is torch's own kernel, which reads the sizes of its input.
    ``torch.equal`` on the CPU in float64, float32 and bfloat16.

    Bytes kept: 0 instead of the input's ``element_size * input.numel()``.

    Cost: none.

    Args:
        module: An average pooling.
        input: ``(N, C, *spatial)`` or ``(C, *spatial)``.
    """
    dims = _num_dims(module)
    kernel, stride, padding = (_of_each_dim(size, dims) for size in (module.kernel_size, module.stride, module.padding))
    flags = (module.ceil_mode, module.count_include_pad, getattr(module, "divisor_override", None))
    if dims == 1:
        settings = ((1, *kernel), (1, *stride), (0, *padding), *flags)
        return _avg_pool(input.unsqueeze(-2), settings).squeeze(-2)
    return _avg_pool(input, (kernel, stride, padding, *flags))


def lean_adaptive_avg_pool(module: AdaptiveAvgPool, input: Tensor) -> Tensor:
    """``nn.AdaptiveAvgPool1d``, ``nn.AdaptiveAvgPool2d`` or ``nn.AdaptiveAvgPool3d``.

    Same as, proof class, bytes kept and cost: as `lean_avg_pool`; in backward, an uninitialised buffer of the
    input's size. To a single place, torch takes the mean, which keeps nothing: that stays a plain call.

    Args:
        module: An adaptive average pooling.
        input: ``(N, C, *spatial)`` or ``(C, *spatial)``.
    """
    sizes = _adaptive_sizes(module, input)
    if len(sizes) == 1:
        return _adaptive_avg_pool(input.unsqueeze(-2), (1, *sizes)).squeeze(-2)
    return _adaptive_avg_pool(input, sizes)


def num_places(module: MaxPool) -> int:
    """Places in a window of a maximum pooling."""
    return math.prod(_of_each_dim(module.kernel_size, _num_dims(module)))


def keeps_type(module: MaxPool, input: Tensor) -> bool:
    """Whether the output has the input's type: on the CPU, autocast runs ``nn.MaxPool3d`` in float32."""
    return _num_dims(module) < 3 or input.dtype == torch.float32 or autocast_dtype(input) is None


def has_several_places(module: AdaptiveAvgPool, input: Tensor) -> bool:
    """Whether an adaptive pooling is more than the mean of each channel."""
    return set(_adaptive_sizes(module, input)) != {1}


def _adaptive_sizes(module: AdaptiveAvgPool, input: Tensor) -> tuple[int, ...]:
    dims = _num_dims(module)
    wanted = module.output_size if isinstance(module.output_size, tuple) else (module.output_size,) * dims
    return tuple(size if w is None else w for w, size in zip(wanted, input.shape[-dims:], strict=True))


def _num_dims(module: nn.Module) -> int:
    return int(type(module).__name__[-2])


def _of_each_dim(value: int | tuple[int, ...], dims: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values


@dataclass(frozen=True)
class _Window:
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    ceil_mode: bool

    def of_one_row(self) -> _Window:
        return _Window((1, *self.kernel), (1, *self.stride), (0, *self.padding), (1, *self.dilation), self.ceil_mode)

    @property
    def settings(self) -> tuple[Any, ...]:
        return self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode

    def offsets(self, indices: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """The number of each maximum's place in its window; `indices` are used up."""
        distances = self._distances(sizes, indices.device)
        numbers = torch.zeros(self._reach(sizes) + 1, dtype=torch.uint8, device=indices.device)
        numbers[distances] = torch.arange(len(distances), dtype=torch.uint8, device=indices.device)
        return _look_up(numbers, indices.sub_(self._starts(sizes, indices)))

    def indices(self, offsets: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """What `offsets` were made from: places in the whole input."""
        distances = self._distances(sizes, offsets.device)
        return _look_up(distances, offsets.to(torch.int32)).add_(self._starts(sizes, offsets))

    def _distances(self, sizes: tuple[int, ...], device: torch.device) -> Tensor:
        """How far behind the first place of a window each of its places lies in the flat input."""
        distances = torch.zeros((), dtype=torch.int64, device=device)
        for num, dilation, step in zip(self.kernel, self.dilation, _steps(sizes), strict=True):
            distances = distances.unsqueeze(-1) + torch.arange(num, device=device) * (dilation * step)
        return distances.flatten()

    def _reach(self, sizes: tuple[int, ...]) -> int:
        parts = zip(self.kernel, self.dilation, _steps(sizes), strict=True)
        return sum((num - 1) * dilation * step for num, dilation, step in parts)

    def _starts(self, sizes: tuple[int, ...], output: Tensor) -> Tensor:
        """The first place of each window in the flat input; where it lies in the padding, one that is not there."""
        starts = torch.zeros((), dtype=torch.int64, device=output.device)
        nums = output.shape[-len(sizes) :]
        for num, stride, padding, step in zip(nums, self.stride, self.padding, _steps(sizes), strict=True):
            starts = starts.unsqueeze(-1) + (torch.arange(num, device=output.device) * stride - padding) * step
        return starts


def _steps(sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(sizes[dim + 1 :]) for dim in range(len(sizes)))


def _look_up(table: Tensor, keys: Tensor) -> Tensor:
    """``table[keys]`` in the memory order of the keys, which are dense."""
    values = table.index_select(0, keys.as_strided((keys.numel(),), (1,)))
    return values.as_strided(keys.shape, keys.stride())


def _max_pool(x: Tensor, window: _Window) -> Tensor:
    output: Tensor = _MaxPool.apply(x, window)  # type: ignore[no-untyped-call]
    return output


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, window: _Window) -> Tensor:
        ctx.set_materialize_grads(False)
        dims = len(window.kernel)
        pool = F.max_pool2d_with_indices if dims == 2 else F.max_pool3d_with_indices
        output, indices = pool(x, *window.settings)
        ctx.window, ctx.layout, ctx.dtype = window, Layout.of(x), x.dtype
        ctx.save_for_backward(window.offsets(indices, tuple(x.shape[-dims:])))
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        if grad is None:
            return None, None
        window: _Window = ctx.window
        dims = len(window.kernel)
        indices = window.indices(ctx.saved_tensors[0], tuple(ctx.layout.shape[-dims:]))
        backward = getattr(torch.ops.aten, f"max_pool{dims}d_with_indices_backward")
        gradient = ctx.layout.empty(grad)  # also the input whose sizes are read
        backward.grad_input(grad, gradient, *window.settings, indices, grad_input=gradient)
        return gradient.to(ctx.dtype), None


def _avg_pool(x: Tensor, settings: tuple[Any, ...]) -> Tensor:
    pool = F.avg_pool2d if len(settings[0]) == 2 else F.avg_pool3d
    return keep_sizes(x, lambda x: pool(x, *settings), partial(_avg_gradient, settings))


def _avg_gradient(settings: tuple[Any, ...], grad: Tensor, layout: Layout) -> Tensor:
    dims = len(settings[0])
    backward = getattr(torch.ops.aten, f"avg_pool{dims}d_backward")
    # Also the input whose sizes are read. In three dimensions torch writes one layout only.
    gradient = layout.empty(grad) if dims == 2 else grad.new_empty(layout.shape)
    backward.grad_input(grad, gradient, *settings, grad_input=gradient)
    return gradient


def _adaptive_avg_pool(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    pool: Callable[..., Tensor] = F.adaptive_avg_pool2d if len(sizes) == 2 else F.adaptive_avg_pool3d
    return keep_sizes(x, lambda x: pool(x, sizes), partial(_adaptive_avg_gradient, len(sizes)))


def _adaptive_avg_gradient(dims: int, grad: Tensor, layout: Layout) -> Tensor:
    backward = getattr(torch.ops.aten, f"_adaptive_avg_pool{dims}d_backward")
    gradient: Tensor = backward(grad, layout.stand_in(grad))
    return gradient
