"""A convolution and a normalisation of N streams and the pathway that integrates them.

Parameters and buffers have the published network's names, so that its checkpoints load.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frostline.systems.linet.compact import Rows
from frostline.systems.linet.synchronised import normalise_by, normalise_together, track_together_
from frostline.systems.linet.treatment import Kind, Recall

Initialisation = Literal["kaiming", "published"]
"""How the integrated pathway starts; the published weights are equal for all channels, so that it has rank 1."""

Pathways = tuple[list[Tensor], Tensor]
"""The streams, ``(n_i, C, H, W)`` each, and the integrated pathway ``(B, C, H, W)``."""


class LIConv2d(nn.Module):
    """Convolve every stream; sum 1x1 convolutions of the results and of the integrated pathway.

    The streams' own convolutions have the kernel; whatever it is, the integrated pathway's are 1x1.

    Args:
        in_channels: Of each stream.
        out_channels: Of each stream.
        integrated_in: Channels of the integrated pathway; 0 in the stem, where there is none yet.
        integrated_out: Its channels behind this layer.
        kernel_size: Of the streams' convolutions.
        stride: Of these and of the integrated pathway's.
        padding: Of the streams' convolutions.
        dilation: Likewise.
        groups: Of the streams' convolutions and of the integrated pathway's own.
        initialisation: Of the integrated pathway's weights.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: Sequence[int],
        integrated_in: int,
        integrated_out: int,
        *,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        initialisation: Initialisation = "kaiming",
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.dilation, self.groups = dilation, groups
        own = torch.empty(integrated_out, integrated_in // groups, 1, 1)
        if integrated_in:
            self.integrated_weight = nn.Parameter(own)
        else:  # published checkpoints hold it; as a parameter of no elements it would never have a gradient
            self.register_buffer("integrated_weight", own)
        self.stream_weights = nn.ParameterList(
            nn.Parameter(torch.empty(out, channels // groups, kernel_size, kernel_size))
            for channels, out in zip(in_channels, out_channels, strict=True)
        )
        self.integration_from_streams = nn.ParameterList(
            nn.Parameter(torch.empty(integrated_out, out, 1, 1)) for out in out_channels
        )
        self.reset_parameters(initialisation)

    def reset_parameters(self, initialisation: Initialisation) -> None:
        """Draw initial weights."""
        for weight in self.stream_weights:
            nn.init.kaiming_uniform_(weight, a=5**0.5)
        own = self.integrated_weight
        if initialisation == "kaiming":
            for weight in (*([own] if own.numel() else []), *self.integration_from_streams):
                nn.init.kaiming_normal_(weight, nonlinearity="relu")
            return
        for weight in self.integration_from_streams:
            nn.init.constant_(weight, 1 / len(self.integration_from_streams))
        if own.numel() and own.shape[0] == own.shape[1]:
            nn.init.orthogonal_(own)
        elif own.numel():
            nn.init.kaiming_normal_(own, nonlinearity="relu")
            with torch.no_grad():
                own.mul_(0.1)

    def forward(self, streams: list[Tensor], integrated: Tensor, rows: Rows, recall: Recall) -> Pathways:
        """Convolve; see `Pathways` for shapes."""
        convolved = []
        for stream, weight in zip(streams, self.stream_weights, strict=True):
            result = self.convolve(stream, weight)
            recall.add("stream", result, self.convolve, stream, weight)
            convolved.append(result)
        arguments = (integrated, self.integrated_weight, *convolved, *self.integration_from_streams)
        total = self._integrate(rows, *arguments)
        recall.add("sum", total, partial(self._integrate, rows), *arguments)
        return convolved, total

    def convolve(self, stream: Tensor, weight: Tensor) -> Tensor:
        """One stream's own convolution."""
        return F.conv2d(stream, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def _integrate(self, rows: Rows, integrated: Tensor, own_weight: Tensor, *streams_and_weights: Tensor) -> Tensor:
        total = F.conv2d(integrated, own_weight, None, self.stride, 0, 1, self.groups)
        streams, weights = streams_and_weights[: rows.num_streams], streams_and_weights[rows.num_streams :]
        for index, (stream, weight) in enumerate(zip(streams, weights, strict=True)):
            total = rows.add_(index, total, F.conv2d(stream, weight))
        return total


class LIBatchNorm2d(nn.Module):
    """Batch normalisation of every pathway by itself; a stream's statistics are those of the samples that have it.

    A stream that no sample has, and one with a single value a channel in training, updates nothing. A frozen stream
    is normalised by its running statistics, which stay as they are, in training too.

    Args:
        channels: Of each stream.
        integrated_channels: Of the integrated pathway.
        eps: Added to variances.
        momentum: Weight of new statistics; None for the mean over all batches.
        streams_end: Nobody reads the streams behind this layer: only their running statistics are kept up, and
            their scale and shift are buffers, because nothing could train them.

    Attributes:
        frozen_streams: Numbers of streams whose statistics stand still.
        synchronised: Whether a batch is that of all processes; see `synchronise_`.
    """

    num_batches_tracked: Tensor

    def __init__(
        self,
        channels: Sequence[int],
        integrated_channels: int,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        streams_end: bool = False,
    ) -> None:
        super().__init__()
        self.eps, self.momentum, self.streams_end = eps, momentum, streams_end
        self.frozen_streams: frozenset[int] = frozenset()
        self.synchronised = False
        collect = _Buffers if streams_end else nn.ParameterList
        self.stream_weights = collect([torch.ones(num) for num in channels])
        self.stream_biases = collect([torch.zeros(num) for num in channels])
        self.integrated_weight = nn.Parameter(torch.ones(integrated_channels))
        self.integrated_bias = nn.Parameter(torch.zeros(integrated_channels))
        names = [f"stream{index}" for index in range(len(channels))]
        for name, num in (*zip(names, channels, strict=True), ("integrated", integrated_channels)):
            self.register_buffer(f"{name}_running_mean", torch.zeros(num))
            self.register_buffer(f"{name}_running_var", torch.ones(num))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(
        self,
        streams: list[Tensor],
        integrated: Tensor,
        recall: Recall,
        *,
        relu: bool,
        shortcut: Pathways | None = None,
    ) -> Pathways:
        """Normalise, add the shortcut and apply ReLU, the latter two in place; see `Pathways` for shapes.

        Args:
            streams: Convolved streams.
            integrated: The integrated sum.
            recall: What may be made again in backward.
            relu: Whether ReLU comes after.
            shortcut: The pathways to add before it.
        """
        momentum = self.count_batch_()
        kind: Kind = "output" if shortcut else "activation" if relu else "shortcut"
        normalised = []
        for index, stream in enumerate(streams):
            added = shortcut[0][index] if shortcut and not self.streams_end else None
            frozen = index in self.frozen_streams
            if self.streams_end and not frozen:
                self._track_(stream, *self.running_statistics(index), momentum)
            elif not self.streams_end:
                weight, bias = self.stream_weights[index], self.stream_biases[index]
                statistics = self.running_statistics(index)
                normalised.append(
                    self._normalise(stream, weight, bias, statistics, momentum, relu, added, kind, recall, frozen)
                )
        weight, bias, statistics = self.integrated_weight, self.integrated_bias, self.running_statistics(None)
        added = shortcut[1] if shortcut else None
        total = self._normalise(integrated, weight, bias, statistics, momentum, relu, added, kind, recall)
        return normalised, total

    def running_statistics(self, stream: int | None) -> tuple[Tensor, Tensor]:
        """Running mean and variance ``(C,)`` of a stream, or of the integrated pathway for None."""
        name = "integrated" if stream is None else f"stream{stream}"
        return self.get_buffer(f"{name}_running_mean"), self.get_buffer(f"{name}_running_var")

    def count_batch_(self) -> float | None:
        """Count the batch, if it updates statistics.

        Returns:
            The weight of its statistics; None where running statistics stay as they are: in eval mode, and when a
            checkpoint runs the layer again in backward.
        """
        if not self.training or torch._C._current_graph_task_id() != -1:
            return None
        self.num_batches_tracked.add_(1)
        return 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum

    def _normalise(
        self,
        raw: Tensor,
        weight: Tensor,
        bias: Tensor,
        statistics: tuple[Tensor, Tensor],
        momentum: float | None,
        relu: bool,
        shortcut: Tensor | None,
        kind: Kind,
        recall: Recall,
        frozen: bool = False,
    ) -> Tensor:
        if self.synchronised and self.training and not frozen:
            running = None if momentum is None else statistics
            out, mean, var = normalise_together(raw, weight, bias, self.eps, running=running, momentum=momentum or 0.0)
            if len(raw):
                make = partial(_normalise_by_and_finish, self.eps, relu)
                recall.add(kind, out, make, raw, weight, bias, shortcut, mean, var)
            return finish_(out, relu, shortcut)
        if len(raw) == 0:  # no kernel for it; the sum keeps every parameter in the graph
            nothing = raw * _channels(weight).to(raw.dtype) + _channels(bias).to(raw.dtype)
            return finish_(nothing, relu, shortcut)
        if frozen or not self.training:
            out = F.batch_norm(raw, *statistics, weight, bias, training=False, eps=self.eps)
            return finish_(out, relu, shortcut)
        if momentum is None:  # a checkpoint's second run: as many tensors must be saved as in the first
            statistics = statistics[0].clone(), statistics[1].clone()
        out = normalise(raw, weight, bias, self.eps, running=statistics, momentum=momentum or 0.0)
        recall.add(kind, out, partial(_normalise_and_finish, self.eps, relu), raw, weight, bias, shortcut)
        return finish_(out, relu, shortcut)

    def _track_(self, raw: Tensor, mean: Tensor, var: Tensor, momentum: float | None) -> None:
        if momentum is not None and self.synchronised:
            track_together_(raw, (mean, var), momentum)
        elif momentum is not None and num_values(raw) > 1:
            torch.batch_norm_update_stats(raw.detach(), mean, var, momentum)


def num_values(raw: Tensor) -> int:
    """Values a channel of ``(n, C, H, W)``."""
    return raw.numel() // raw.shape[1]


def normalise(
    raw: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    running: tuple[Tensor, Tensor] | None = None,
    momentum: float = 0.0,
) -> Tensor:
    """Normalise by the batch's own statistics.

    Args:
        raw: ``(n, C, H, W)``, not empty.
        weight: ``(C,)``.
        bias: ``(C,)``.
        eps: Added to the variance.
        running: Mean and variance to update; they are left alone where there is one value a channel.
        momentum: Weight of the new ones.
    """
    mean, var = running if running is not None and num_values(raw) > 1 else (None, None)
    # F.batch_norm refuses one value a channel, which a stream that one sample has may come down to.
    return torch.batch_norm(raw, weight, bias, mean, var, True, momentum, eps, torch.backends.cudnn.enabled)


def finish_(out: Tensor, relu: bool, shortcut: Tensor | None) -> Tensor:
    """Add the shortcut and apply ReLU, in place: normalisation keeps its input, not its output."""
    if shortcut is not None:
        out.add_(shortcut)
    return out.relu_() if relu else out


def _normalise_and_finish(
    eps: float, relu: bool, raw: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None
) -> Tensor:
    return finish_(normalise(raw, weight, bias, eps), relu, shortcut)


def _normalise_by_and_finish(
    eps: float,
    relu: bool,
    raw: Tensor,
    weight: Tensor,
    bias: Tensor,
    shortcut: Tensor | None,
    mean: Tensor,
    var: Tensor,
) -> Tensor:
    return finish_(normalise_by(raw, mean, var, weight, bias, eps), relu, shortcut)


def synchronise_(module: nn.Module, synchronised: bool = True) -> None:
    """Let every batch normalisation inside take the batches of all processes as one.

    All processes must make their steps together. The stem is then not fused: what it saves is kept.
    """
    for part in module.modules():
        if isinstance(part, LIBatchNorm2d):
            part.synchronised = synchronised


def _channels(vector: Tensor) -> Tensor:
    return vector.view(1, -1, 1, 1)


class _Buffers(nn.Module):
    """A list of tensors that do not train, named in ``state_dict`` as a list of parameters."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()
        for index, tensor in enumerate(tensors):
            self.register_buffer(str(index), tensor)

    def __getitem__(self, index: int) -> Tensor:
        return self.get_buffer(str(index))

    def __len__(self) -> int:
        return len(self._buffers)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))
