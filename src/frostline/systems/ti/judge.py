"""The judge: a small classifier that says what a picture of a thing shows.

It shares neither weights nor training with the model whose pictures it judges, so a concept cannot be learned against
it. `pretrain.py` trains it on pictures alone.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from frostline.scenes import THING_BACKGROUNDS, THING_COLOURS, THINGS

_CHANNELS = (3, 32, 48, 64)
_GROUPS = 8
_BLOCK = 256  # pictures judged at once


class Verdict(NamedTuple):
    """What the judge sees.

    Attributes:
        shapes: Indices into `THINGS`, int64 (N,).
        colours: Indices into `THING_COLOURS`, int64 (N,).
        backgrounds: Indices into `THING_BACKGROUNDS`, int64 (N,).
    """

    shapes: Tensor
    colours: Tensor
    backgrounds: Tensor


class Judge(nn.Module):
    """Three convolutions of stride 2 and three linear heads.

    Args:
        size: Height and width of the pictures, a multiple of 8.
    """

    def __init__(self, size: int = 32) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for num_in, num_out in pairwise(_CHANNELS):
            convolution = nn.Conv2d(num_in, num_out, 3, stride=2, padding=1)
            blocks += [convolution, nn.GroupNorm(_GROUPS, num_out), nn.ReLU()]
        self.features = nn.Sequential(*blocks, nn.Flatten())
        width = _CHANNELS[-1] * (size // 8) ** 2
        kinds = (THINGS, THING_COLOURS, THING_BACKGROUNDS)
        self.heads = nn.ModuleList(nn.Linear(width, len(kind)) for kind in kinds)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Pixels (N, 3, S, S) in [-1, 1] to scores of shapes (N, 12), colours (N, 5) and backgrounds (N, 2)."""
        features = self.features(pixels)
        return tuple(head(features) for head in self.heads)

    @torch.no_grad()
    def verdict(self, pixels: Tensor) -> Verdict:
        """The most likely shape, colour and background of each picture (N, 3, S, S) in [-1, 1]."""
        blocks = [self(block) for block in pixels.split(_BLOCK)]
        return Verdict(*(torch.cat(scores).argmax(1) for scores in zip(*blocks, strict=True)))
