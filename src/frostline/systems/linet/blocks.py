"""Residual blocks of N streams and the integrated pathway."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from frostline.errors import ConfigError
from frostline.systems.linet.compact import Rows
from frostline.systems.linet.layers import Initialisation, LIBatchNorm2d, LIConv2d, Pathways
from frostline.systems.linet.treatment import Recall


class LIBlock(nn.Module, ABC):
    """Convolutions with a normalisation each, and a shortcut around them, on all pathways.

    Args:
        in_width: Channels of every pathway.
        width: Of the block's own convolutions, before `expansion`.
        num_streams: How many.
        stride: Of the convolution that has one.
        dilation: Of the 3x3 convolutions.
        groups: Of the 3x3 convolution of a bottleneck.
        width_per_group: Of a bottleneck.
        streams_end: Nobody reads the streams behind this block.
        initialisation: Of the integrated pathway's weights.
    """

    expansion: ClassVar[int]

    def __init__(
        self,
        in_width: int,
        width: int,
        *,
        num_streams: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        width_per_group: int = 64,
        streams_end: bool = False,
        initialisation: Initialisation = "kaiming",
    ) -> None:
        super().__init__()
        out_width = width * self.expansion
        self.groups, self.width_per_group, self.dilation = groups, width_per_group, dilation

        def convolution(inside: int, outside: int, size: int, stride: int = 1, groups: int = 1) -> LIConv2d:
            dilated = dilation if size > 1 else 1
            return LIConv2d(
                [inside] * num_streams,
                [outside] * num_streams,
                inside,
                outside,
                kernel_size=size,
                stride=stride,
                padding=dilated * (size // 2),
                dilation=dilated,
                groups=groups,
                initialisation=initialisation,
            )

        def normalisation(width: int, last: bool) -> LIBatchNorm2d:
            return LIBatchNorm2d([width] * num_streams, width, streams_end=streams_end and last)

        convolutions = self.convolutions(convolution, in_width, width, stride)
        self.num_layers = len(convolutions)
        for number, (layer, layer_width) in enumerate(convolutions, 1):
            self.add_module(f"conv{number}", layer)
            self.add_module(f"bn{number}", normalisation(layer_width, number == self.num_layers))
        self.downsample: nn.ModuleList | None = None
        if stride != 1 or in_width != out_width:
            layers = (convolution(in_width, out_width, 1, stride), normalisation(out_width, True))
            self.downsample = nn.ModuleList(layers)

    @abstractmethod
    def convolutions(
        self, make: Callable[..., LIConv2d], in_width: int, width: int, stride: int
    ) -> list[tuple[LIConv2d, int]]:
        """The block's convolutions, each with its width."""

    @property
    def last_norm(self) -> LIBatchNorm2d:
        """The normalisation before the shortcut is added."""
        return self._layer(self.num_layers)[1]

    def forward(self, streams: list[Tensor], integrated: Tensor, rows: Rows, recall: Recall) -> Pathways:
        """Run the block; streams whose end it is come out as an empty list."""
        inner_streams, inner = streams, integrated
        for number in range(1, self.num_layers):
            conv, norm = self._layer(number)
            inner_streams, inner = conv(inner_streams, inner, rows, recall)
            inner_streams, inner = norm(inner_streams, inner, recall, relu=True)
        conv, norm = self._layer(self.num_layers)
        inner_streams, inner = conv(inner_streams, inner, rows, recall)
        shortcut: Pathways = (streams, integrated)
        if self.downsample is not None:
            convolve, normalise = self.downsample
            shortcut = normalise(*convolve(*shortcut, rows, recall), recall, relu=False)
        pathways: Pathways = norm(inner_streams, inner, recall, relu=True, shortcut=shortcut)
        return pathways

    def _layer(self, number: int) -> tuple[LIConv2d, LIBatchNorm2d]:
        conv, norm = self.get_submodule(f"conv{number}"), self.get_submodule(f"bn{number}")
        assert isinstance(conv, LIConv2d) and isinstance(norm, LIBatchNorm2d)
        return conv, norm


class LIBasicBlock(LIBlock):
    """Two 3x3 convolutions; of ResNet-18 and 34."""

    expansion = 1

    def convolutions(
        self, make: Callable[..., LIConv2d], in_width: int, width: int, stride: int
    ) -> list[tuple[LIConv2d, int]]:
        """3x3 with the stride, 3x3.

        Raises:
            ConfigError: Groups, another width or dilation were asked for.
        """
        if (self.groups, self.width_per_group, self.dilation) != (1, 64, 1):
            raise ConfigError(
                "a basic block has no groups, no other width and no dilation", do="take depth 50, 101 or 152"
            )
        return [(make(in_width, width, 3, stride), width), (make(width, width, 3), width)]


class LIBottleneck(LIBlock):
    """1x1, 3x3 and 1x1 convolutions, the stride on the second; of ResNet-50, 101 and 152."""

    expansion = 4

    def convolutions(
        self, make: Callable[..., LIConv2d], in_width: int, width: int, stride: int
    ) -> list[tuple[LIConv2d, int]]:
        """1x1, 3x3 with stride and groups, 1x1 to four times the width."""
        inner, outer = int(width * (self.width_per_group / 64)) * self.groups, width * self.expansion
        return [
            (make(in_width, inner, 1), inner),
            (make(inner, inner, 3, stride, self.groups), inner),
            (make(inner, outer, 1), outer),
        ]


def zero_last_scales_(module: nn.Module) -> None:
    """Let every residual branch start as zero."""
    with torch.no_grad():
        for block in module.modules():
            if isinstance(block, LIBlock):
                norm = block.last_norm
                for scale in (*norm.stream_weights, norm.integrated_weight):
                    scale.zero_()
