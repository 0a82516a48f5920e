"""The stem of all pathways: convolution, integration, normalisation, ReLU and pooling, plain and fused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from frostline.errors import StepError
from frostline.systems.linet.compact import Rows
from frostline.systems.linet.layers import LIBatchNorm2d, LIConv2d, Pathways, finish_, normalise
from frostline.systems.linet.treatment import Recall

_KERNEL, _STRIDE, _PADDING, _DILATION = (3, 3), (2, 2), (1, 1), (1, 1)
_pool = partial(F.max_pool2d, kernel_size=_KERNEL, stride=_STRIDE, padding=_PADDING)
_aten = torch.ops.aten
_VECTOR = 16  # channels that a kernel takes at once: a narrower slice would be rounded in another way


def plain_stem(
    conv: LIConv2d, bn: LIBatchNorm2d, streams: list[Tensor], fill: Tensor | None, rows: Rows, recall: Recall
) -> Pathways:
    """The stem as a sequence of torch's operators.

    Args:
        conv: Its convolution.
        bn: Its normalisation.
        streams: Images ``(n_i, C_i, H, W)``.
        fill: What stands in the integrated sum for streams that are missing, ``(B, C)``.
        rows: Which samples have which stream.
        recall: What may be made again in backward.
    """
    convolved = [conv.convolve(stream, weight) for stream, weight in zip(streams, conv.stream_weights, strict=True)]
    total = _integrate(rows, convolved, list(conv.integration_from_streams), fill)
    convolved, total = bn(convolved, total, recall, relu=True)
    return [_pool(stream) if len(stream) else _pooled_nothing(stream) for stream in convolved], _pool(total)


def fused_stem(
    conv: LIConv2d, bn: LIBatchNorm2d, streams: list[Tensor], fill: Tensor | None, rows: Rows, num_slices: int
) -> Pathways:
    """The stem in training, keeping the images for backward and nothing else.

    Backward convolves once more, then goes back through pooling, ReLU and normalisation a slice of the channels at
    a time, each slice's gradient written over what was convolved.

    Same as: `plain_stem` in training mode, under autocast too.

    Proof class: ``EXACT``: the same kernels; normalisation and pooling know no channel but their own.

    Memory: the images, instead of three maps and int64 indices at half and a quarter of their size.

    Cost: the stem's convolutions once more.

    Args:
        conv: As of `plain_stem`.
        bn: As of `plain_stem`, in training mode.
        streams: As of `plain_stem`.
        fill: As of `plain_stem`.
        rows: As of `plain_stem`.
        num_slices: Slices of the channels, of 16 channels each or more.

    Raises:
        StepError: In backward with ``create_graph=True``.
    """
    running = [bn.running_statistics(index) for index in (*range(rows.num_streams), None)]
    plan = _Plan(conv, rows, bn.eps, bn.count_batch_(), running, bn.frozen_streams, num_slices)
    device_type = streams[0].device.type
    images, kernels, integration = streams, list(conv.stream_weights), list(conv.integration_from_streams)
    if torch.is_autocast_enabled(device_type):  # the casts that autocast makes, where autograd sees them
        dtype = torch.get_autocast_dtype(device_type)
        images, kernels, integration = ([x.to(dtype) for x in part] for part in (images, kernels, integration))
    scales, shifts = [*bn.stream_weights, bn.integrated_weight], [*bn.stream_biases, bn.integrated_bias]
    tensors = (*images, *kernels, *integration, *scales, *shifts)
    *pooled, total = _FusedStem.apply(plan, fill, *tensors)  # type: ignore[no-untyped-call]
    return pooled, total


def _integrate(rows: Rows, convolved: Sequence[Tensor], weights: Sequence[Tensor], fill: Tensor | None) -> Tensor:
    total: Tensor | None = None
    for index, (stream, weight) in enumerate(zip(convolved, weights, strict=True)):
        part = F.conv2d(stream, weight)
        if total is None and rows.indices[index] is None:
            total = part
            continue
        if total is None:
            size = (rows.batch_size, *part.shape[1:])
            empty = torch.empty(size, dtype=part.dtype, device=part.device, memory_format=torch.channels_last)
            total = empty.zero_()
        total = rows.add_(index, total, part)
    assert total is not None, "a network has a stream"
    return total if fill is None else total.add_(fill.to(total.dtype)[:, :, None, None])


def _pooled_nothing(stream: Tensor) -> Tensor:
    """What pooling makes of no samples; in the graph, so that every parameter has a gradient, if zero."""
    return stream[:, :, :: _STRIDE[0], :: _STRIDE[1]]


@dataclass(frozen=True)
class _Plan:
    """What the fused stem needs besides tensors that train."""

    conv: LIConv2d
    rows: Rows
    eps: float
    momentum: float | None
    running: list[tuple[Tensor, Tensor]]
    frozen: frozenset[int]
    num_slices: int

    @property
    def num_streams(self) -> int:
        return self.rows.num_streams

    def split(self, tensors: Sequence[Any]) -> tuple[Sequence[Any], ...]:
        """Images, kernels, integration weights, scales and shifts."""
        num = self.num_streams
        ends = (num, 2 * num, 3 * num, 4 * num + 1, 5 * num + 2)
        return tuple(tensors[start:end] for start, end in zip((0, *ends), ends, strict=False))

    def convolve(self, images: Sequence[Tensor], kernels: Sequence[Tensor]) -> list[Tensor]:
        return [self.conv.convolve(image, kernel) for image, kernel in zip(images, kernels, strict=True)]


class _FusedStem(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, fill: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
        images, kernels, integration, scales, shifts = plan.split(tensors)
        ctx.plan = plan
        ctx.save_for_backward(fill, *tensors)
        with torch.autocast(tensors[0].device.type, enabled=False):
            raw = plan.convolve(images, kernels)
            raw.append(_integrate(plan.rows, raw, integration, fill))
            outputs = []
            for index, (scale, shift) in enumerate(zip(scales, shifts, strict=True)):
                outputs.append(_normalise_and_pool(raw[0], scale, shift, plan, index))
                del raw[0]  # its memory is the next one's
                assert len(raw) == plan.num_streams - index
        ctx.set_materialize_grads(False)
        needs = plan.split(ctx.needs_input_grad[2:])
        still = [not any(part[index] for part in needs if part is not needs[2]) for index in range(plan.num_streams)]
        ctx.mark_non_differentiable(*(out for out, stands in zip(outputs, still, strict=False) if stands))
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise StepError(
                "the fused stem has no second derivative, and this backward has create_graph=True",
                do="take a Treatment with stem_slices=0 where a gradient of a gradient is needed",
            )
        plan: _Plan = ctx.plan
        fill, *tensors = ctx.saved_tensors
        images, kernels, integration, scales, shifts = plan.split(tensors)
        needs = plan.split(ctx.needs_input_grad[2:])
        of: list[list[Tensor | None]] = [[None] * len(part) for part in needs]  # gradients, by part and stream
        of_images, of_kernels, of_integration, of_scales, of_shifts = of
        with torch.autocast(tensors[0].device.type, enabled=False):
            raw = plan.convolve(images, kernels)
            total = _integrate(plan.rows, raw, integration, fill)
            of_scales[-1], of_shifts[-1] = _go_back_(total, scales[-1], shifts[-1], grads[-1], plan, len(images))
            of_fill = total.sum((2, 3)).to(fill.dtype) if ctx.needs_input_grad[1] else None
            for index in range(plan.num_streams):
                stream = raw.pop(0)
                of_part = plan.rows.take(index, total)
                flags = (False, needs[2][index], False)
                of_integration[index] = _convolution_gradients(of_part, stream, integration[index], flags)[1]
                if not any(part[index] for part in needs if part is not needs[2]):
                    continue
                arrived = grads[index]
                of_scales[index], of_shifts[index] = _go_back_(
                    stream, scales[index], shifts[index], arrived, plan, index
                )
                stream.add_(_convolution_gradients(of_part, stream, integration[index], (True, False, False))[0])
                del of_part
                flags = (needs[0][index], needs[1][index], False)
                of_images[index], of_kernels[index], _ = _convolution_gradients(
                    stream, images[index], kernels[index], flags, plan.conv
                )
        return (None, of_fill, *(gradient for part in of for gradient in part))


def _normalise_and_pool(raw: Tensor, scale: Tensor, shift: Tensor, plan: _Plan, index: int) -> Tensor:
    if len(raw) == 0:
        return _pooled_nothing(raw).clone()
    if index in plan.frozen:
        out = F.batch_norm(raw, *plan.running[index], scale, shift, training=False, eps=plan.eps)
    else:
        tracked = None if plan.momentum is None else plan.running[index]
        out = normalise(raw, scale, shift, plan.eps, running=tracked, momentum=plan.momentum or 0.0)
    return _pool(finish_(out, True, None))


def _go_back_(
    raw: Tensor, scale: Tensor, shift: Tensor, grad: Tensor | None, plan: _Plan, index: int
) -> tuple[Tensor, Tensor]:
    """Write the gradient of `raw` over it; the gradients of scale and shift."""
    of_scale, of_shift = torch.zeros_like(scale), torch.zeros_like(shift)
    if len(raw) == 0 or grad is None:
        raw.zero_()
        return of_scale, of_shift
    trains = index not in plan.frozen
    width = -(-raw.shape[1] // (plan.num_slices * _VECTOR)) * _VECTOR
    for start in range(0, raw.shape[1], width):
        part = slice(start, start + width)
        own, arrived = (x[:, part].contiguous(memory_format=torch.channels_last) for x in (raw, grad))
        mean, var = (None, None) if trains else (statistic[part] for statistic in plan.running[index])
        out, *saved = torch.native_batch_norm(own, scale[part], shift[part], mean, var, trains, 0.0, plan.eps)
        out.relu_()
        indices = _pool(out, return_indices=True)[1]
        window = (_KERNEL, _STRIDE, _PADDING, _DILATION, False)
        back = _aten.max_pool2d_with_indices_backward(arrived, out, *window, indices)
        del indices, arrived
        back = _aten.threshold_backward(back, out, 0)
        del out
        arguments = (back, own, scale[part], mean, var, *saved, trains, plan.eps, (True, True, True))
        raw[:, part], of_scale[part], of_shift[part] = _aten.native_batch_norm_backward(*arguments)
    return of_scale, of_shift


def _convolution_gradients(
    grad: Tensor, input: Tensor, weight: Tensor, needs: tuple[bool, bool, bool], conv: LIConv2d | None = None
) -> tuple[Any, Any, Any]:
    """Of `conv`, or of a 1x1 convolution; of input, weight and bias."""
    if not any(needs):
        return None, None, None
    settings: tuple[Any, ...] = ((1, 1), (0, 0), (1, 1), False, (0, 0), 1)
    if conv is not None:
        pairs = ((value, value) for value in (conv.stride, conv.padding, conv.dilation))
        settings = (*pairs, False, (0, 0), conv.groups)
    gradients: tuple[Any, Any, Any] = _aten.convolution_backward(grad, input, weight, None, *settings, needs)
    return gradients
