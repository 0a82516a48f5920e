"""LINet: N streams of a ResNet side by side, and a pathway that integrates them and is classified."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from frostline.errors import ConfigError, ShapeError
from frostline.ops import Recipes
from frostline.systems.linet.blocks import LIBasicBlock, LIBlock, LIBottleneck, zero_last_scales_
from frostline.systems.linet.compact import Rows
from frostline.systems.linet.layers import Initialisation, LIBatchNorm2d, LIConv2d
from frostline.systems.linet.stem import fused_stem, plain_stem
from frostline.systems.linet.treatment import Recall, Treatment

if TYPE_CHECKING:
    from frostline.systems.linet.history import History
    from frostline.systems.linet.scoring import Scores

Depth = Literal[18, 34, 50, 101, 152]
Statistics = tuple[float | Sequence[float], float | Sequence[float]]
"""Mean and standard deviation, of all channels or of each."""
Fill = Literal["zero", "learned"]
"""What a missing stream adds to the integrated pathway behind the stem: nothing, or a vector that is trained."""

_BLOCKS: dict[int, tuple[type[LIBlock], tuple[int, ...]]] = {
    18: (LIBasicBlock, (2, 2, 2, 2)),
    34: (LIBasicBlock, (3, 4, 6, 3)),
    50: (LIBottleneck, (3, 4, 6, 3)),
    101: (LIBottleneck, (3, 4, 23, 3)),
    152: (LIBottleneck, (3, 8, 36, 3)),
}


class LINet(nn.Module):
    """A linear-integration ResNet, whose streams run on the samples that have them and on nothing else.

    Every convolution adds 1x1 convolutions of the streams' results to the integrated pathway, which alone is
    classified. A stream that a sample lacks adds nothing there, and the sample does not count in the stream's
    batch statistics: same as running it on zeros and masking its results, at a cost that falls with what is
    missing. Missing data is never read.

    Parameters and buffers are named as in the published network (li_net3), and its checkpoints load strictly.
    Behind the last integration the streams end: only their running statistics are kept up, so that those of a
    loaded checkpoint stay what they were meant to be; what could never have a gradient is a buffer.

    Args:
        num_classes: Of the classifier.
        stream_channels: Channels of each stream's images.
        depth: Of the ResNet.
        width_multiplier: Of all channel counts.
        fill: What a missing stream adds to the integrated pathway.
        dropout: Probability of dropout before the classifier.
        initialisation: Of the integrated pathway's weights.
        zero_init_residual: Start every residual branch as zero.
        groups: Of bottlenecks' 3x3 convolutions.
        width_per_group: Of bottlenecks.
        replace_stride_with_dilation: Of the last three stages; bottlenecks only.
        layers: Blocks of each stage, if not those of `depth`.

    Attributes:
        treatment: What to make again in backward instead of keeping it; may be changed between steps.
        norm_stats: Mean and standard deviation of each stream's values in 0..1, by which images of type uint8 are
            normalised; 0.5 and 0.25 where it is None. Images of other types are taken as they are.

    Raises:
        ConfigError: A value that makes no network.
    """

    def __init__(
        self,
        num_classes: int = 19,
        stream_channels: Sequence[int] = (3, 1),
        *,
        depth: Depth = 18,
        width_multiplier: float = 1.0,
        fill: Fill = "zero",
        dropout: float = 0.0,
        initialisation: Initialisation = "kaiming",
        zero_init_residual: bool = False,
        groups: int = 1,
        width_per_group: int = 64,
        replace_stride_with_dilation: Sequence[bool] = (False, False, False),
        layers: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if not stream_channels or depth not in _BLOCKS:
            raise ConfigError(
                f"no LINet has {len(stream_channels)} streams and depth {depth}",
                do=f"give a stream or more, and a depth of {', '.join(map(str, _BLOCKS))}",
            )
        kind, usual = _BLOCKS[depth]
        num_streams, num_blocks = len(stream_channels), tuple(layers or usual)
        if len(num_blocks) != 4 or min(num_blocks) < 1:
            raise ConfigError(f"layers are {num_blocks}", do="give the number of blocks of four stages")
        widths = [int(width * width_multiplier) for width in (64, 128, 256, 512)]
        self.num_streams, self.treatment = num_streams, Treatment()
        self.norm_stats: tuple[Statistics, ...] | None = None
        self._options: dict[str, Any] = {}
        self.conv1 = LIConv2d(
            stream_channels,
            [widths[0]] * num_streams,
            0,
            widths[0],
            kernel_size=7,
            stride=2,
            padding=3,
            initialisation=initialisation,
        )
        self.bn1 = LIBatchNorm2d([widths[0]] * num_streams, widths[0])
        make = partial(
            kind,
            num_streams=num_streams,
            groups=groups,
            width_per_group=width_per_group,
            initialisation=initialisation,
        )
        in_width, dilation = widths[0], 1
        for number, (width, num, dilated) in enumerate(
            zip(widths, num_blocks, (False, *replace_stride_with_dilation), strict=True), 1
        ):
            stride, before = 1 if number == 1 or dilated else 2, dilation
            dilation *= 2 if dilated else 1
            blocks = nn.ModuleList()
            for index in range(num):
                first = index == 0
                blocks.append(
                    make(
                        in_width,
                        width,
                        stride=stride if first else 1,
                        dilation=before if first else dilation,
                        streams_end=number == 4 and index == num - 1,
                    )
                )
                in_width = width * kind.expansion
            self.add_module(f"layer{number}", blocks)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(in_width, num_classes)
        self.missing_embeddings: nn.Parameter | None = None
        if fill == "learned":
            self.missing_embeddings = nn.Parameter(torch.zeros(num_streams, widths[0]))
        if zero_init_residual:
            zero_last_scales_(self)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, streams: Sequence[Tensor], availability: Tensor | Rows | None = None) -> Tensor:
        """Classify.

        Args:
            streams: Images ``(B, C_i, H, W)`` of each stream, float or uint8.
            availability: ``(B, N)`` bool, True where the sample has the stream, or what `Rows.of` made of it; None
                if all have all. On a GPU, a tensor that lies there costs one wait for the host.

        Returns:
            Logits ``(B, num_classes)``.

        Raises:
            ShapeError: The streams do not agree with each other or with `availability`.
            DataError: A sample has no stream.
        """
        rows = self._rows(streams, availability)
        with Recipes() as recipes:
            images = [self._normalised(index, stream) for index, stream in enumerate(rows.gather(streams))]
            pathways = self._stem(images, rows, recipes)
            for name, block in self.blocks():
                pathways = block(*pathways, rows, Recall(recipes, self.treatment.of(name)))
        logits: Tensor = self.fc(self.dropout(self.avgpool(pathways[1]).flatten(1)))
        return logits

    def blocks(self) -> Iterator[tuple[str, LIBlock]]:
        """Residual blocks by name, in order."""
        for name, module in self.named_modules():
            if isinstance(module, LIBlock):
                yield name, module

    def compile(self, optimizer: Any = None, **options: Any) -> None:
        """Keep options for `fit`, as the original does; ``torch.compile(model)`` is what compiles.

        Args:
            optimizer: torch's, or a name; see `FitSettings`.
            options: Any others of them.

        Raises:
            ConfigError: One of them is not known, or its value makes no sense.
        """
        from frostline.systems.linet.settings import read_settings

        chosen = options if optimizer is None else {"optimizer": optimizer, **options}
        read_settings(chosen)
        self._options = chosen

    def fit(
        self, train_loader: Iterable[object], val_loader: Iterable[object] | None = None, **options: Any
    ) -> History:
        """Train on loaders of ``(stream 0, ..., stream N-1, labels)``; see `FitSettings` for the options.

        Args:
            train_loader: Its batches may hold an availability ``(B, N)`` before the labels.
            val_loader: Likewise.
            options: They go before those that `compile` was given.

        Raises:
            ConfigError: An option is not known, or its value makes no sense here.
            DataError: A loader yields nothing, or something else.
        """
        from frostline.systems.linet.fit import fit
        from frostline.systems.linet.settings import read_settings

        return fit(self, train_loader, val_loader, read_settings({**self._options, **options}))

    def evaluate(
        self,
        loader: Iterable[object],
        *,
        streams: Sequence[int] | None = None,
        blanked_streams: Iterable[int] = (),
    ) -> Scores:
        """Loss and accuracy with all streams, with `streams` alone, or without `blanked_streams`.

        Raises:
            ConfigError: There is no such stream, or none is left.
            DataError: No sample has one of the streams.
        """
        from frostline.systems.linet.scoring import score

        return score(self, loader, streams=self._chosen(streams, blanked_streams))

    def predict(self, loader: Iterable[object], *, blanked_streams: Iterable[int] = ()) -> Tensor:
        """Classes ``(S,)`` of all samples, on the CPU; labels may be left out of the batches."""
        return self.predict_proba(loader, blanked_streams=blanked_streams).argmax(1)

    def predict_proba(self, loader: Iterable[object], *, blanked_streams: Iterable[int] = ()) -> Tensor:
        """Class probabilities ``(S, K)`` of all samples, on the CPU."""
        from frostline.systems.linet.scoring import predict_probabilities

        return predict_probabilities(self, loader, streams=self._chosen(None, blanked_streams))

    def _chosen(self, streams: Sequence[int] | None, blanked: Iterable[int]) -> Sequence[int] | None:
        gone = set(blanked)
        if not gone:
            return streams
        return [stream for stream in (streams or range(self.num_streams)) if stream not in gone]

    def _normalised(self, index: int, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            return images
        mean, std = (0.5, 0.25) if self.norm_stats is None else self.norm_stats[index]
        values = images.to(self.conv1.stream_weights[index].dtype).div_(255)
        shift, scale = (values.new_tensor(value).view(-1, 1, 1) for value in (mean, std))
        return values.sub_(shift).div_(scale)

    def _rows(self, streams: Sequence[Tensor], availability: Tensor | Rows | None) -> Rows:
        device, num_streams = streams[0].device, len(streams)
        rows = availability
        if rows is None:
            rows = Rows.all(len(streams[0]), num_streams, device)
        elif isinstance(rows, Tensor):
            rows = Rows.of(rows, device)
        if (num_streams, rows.num_streams) != (self.num_streams, self.num_streams):
            raise ShapeError("the streams", expected=(self.num_streams,), actual=(num_streams,))
        return rows

    def _stem(self, streams: list[Tensor], rows: Rows, recipes: Recipes) -> tuple[list[Tensor], Tensor]:
        fill = None
        if self.missing_embeddings is not None:
            missing = (~rows.availability).to(self.missing_embeddings.dtype)
            fill = missing @ self.missing_embeddings
        trains = self.training and torch.is_grad_enabled() and not self.bn1.synchronised
        if self.treatment.stem_slices and trains:
            return fused_stem(self.conv1, self.bn1, streams, fill, rows, self.treatment.stem_slices)
        return plain_stem(self.conv1, self.bn1, streams, fill, rows, Recall(recipes))


li_resnet18 = partial(LINet, depth=18)
li_resnet34 = partial(LINet, depth=34)
li_resnet50 = partial(LINet, depth=50)
li_resnet101 = partial(LINet, depth=101)
li_resnet152 = partial(LINet, depth=152)
