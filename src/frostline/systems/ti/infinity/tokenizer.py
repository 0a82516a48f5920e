"""The picture tokenizer: a convolutional encoder and decoder with the published checkpoints' names."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frostline.errors import ShapeError
from frostline.systems.ti.infinity.sizes import TokenizerConfig

BIT_MASKS = ("quantize.lfq.mask", "quantizer.lfq.mask")
"""One tensor under two names: all that the published quantiser adds to a file."""


def bit_mask(code_bits: int) -> Tensor:
    """The place value of each bit, int64 of shape (code bits,), the highest first."""
    return torch.ones(code_bits, dtype=torch.int64) << torch.arange(code_bits).flip(0)


class ImageTokenizer(nn.Module):
    """Pictures to features and back; `MultiScaleBSQ` makes bits of the features.

    Source: the tokenizer of Infinity (arXiv 2412.04431), a VQGAN without attention. No value of its `state_dict` but
    convolutions and group normalisations matters: the bit masks are there because the published files hold them.

    Args:
        config: Its size.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantizer = self.quantize = _BitMask(config.code_bits)

    def encode(self, images: Tensor) -> Tensor:
        """Raw features (B, code bits, height / stride, width / stride) of images (B, 3, height, width) in [-1, 1].

        Raises:
            ShapeError: The stride does not divide height and width.
        """
        stride = self.config.stride
        if images.dim() != 4 or images.size(1) != 3 or images.size(2) % stride or images.size(3) % stride:
            multiple = f"a multiple of {stride}"
            raise ShapeError("images", expected=("B", 3, multiple, multiple), actual=tuple(images.shape))
        features: Tensor = self.encoder(images)
        return features

    def decode(self, features: Tensor) -> Tensor:
        """Images (B, 3, height, width) of features; about [-1, 1], not clamped."""
        images: Tensor = self.decoder(features)
        return images

    def forward(self, images: Tensor) -> Tensor:
        """Same as `encode`."""
        return self.encode(images)


class Encoder(nn.Module):
    """Pixels to features; each level but the last halves height and width."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        channels, base = config.base_channels, config.base_channels
        self.conv_in = _Convolution(3, channels)
        self.down = nn.ModuleList()
        for level, multiple in enumerate(config.channel_multiples):
            sizes = [channels] + [base * multiple] * config.num_res_blocks
            channels = base * multiple
            is_last = level + 1 == len(config.channel_multiples)
            self.down.append(_Level(sizes, downsample=not is_last))
        self.mid = _Middle(channels)
        self.norm_out = _Normalisation(channels)
        self.conv_out = _Convolution(channels, config.code_bits)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, height, width) to (B, code bits, height / stride, width / stride)."""
        hidden = self.conv_in(images)
        for level in self.down:
            hidden = level(hidden)
        features: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(hidden))))
        return features


class Decoder(nn.Module):
    """Features to pixels; each level but the first in the list, which runs last, doubles height and width."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        base, multiples = config.base_channels, config.channel_multiples
        channels = base * multiples[-1]
        self.conv_in = _Convolution(config.code_bits, channels)
        self.mid = _Middle(channels)
        levels = []
        for level in reversed(range(len(multiples))):
            sizes = [channels] + [base * multiples[level]] * (config.num_res_blocks + 1)
            channels = base * multiples[level]
            levels.append(_Level(sizes, upsample=level > 0))
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = _Normalisation(channels)
        self.conv_out = _Convolution(channels, 3)

    def forward(self, features: Tensor) -> Tensor:
        """(B, code bits, height, width) to (B, 3, stride x height, stride x width)."""
        hidden = self.mid(self.conv_in(features))
        for level in reversed(self.up):
            hidden = level(hidden)
        images: Tensor = self.conv_out(F.silu(self.norm_out(hidden)))
        return images


class _Convolution(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        padding = kernel // 2 if stride == 1 else 0
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding)

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.conv(hidden)
        return output


class _Normalisation(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(24 if channels % 32 else 32, channels, eps=1e-6)

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.norm(hidden)
        return output


class _Residual(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _Normalisation(in_channels), _Convolution(in_channels, out_channels)
        self.norm2, self.conv2 = _Normalisation(out_channels), _Convolution(out_channels, out_channels)
        if in_channels != out_channels:
            self.nin_shortcut = _Convolution(in_channels, out_channels, kernel=1)

    def forward(self, hidden: Tensor) -> Tensor:
        change = self.conv1(F.silu(self.norm1(hidden)))
        change = self.conv2(F.silu(self.norm2(change)))
        output: Tensor = change + (self.nin_shortcut(hidden) if "nin_shortcut" in self._modules else hidden)
        return output


class _Level(nn.Module):
    def __init__(self, channels: Sequence[int], *, downsample: bool = False, upsample: bool = False) -> None:
        super().__init__()
        self.block = nn.ModuleList(_Residual(*pair) for pair in pairwise(channels))
        if downsample:
            self.downsample = _Downsample(channels[-1])
        if upsample:
            self.upsample = _Upsample(channels[-1])

    def forward(self, hidden: Tensor) -> Tensor:
        for part in self.children():
            for layer in part if isinstance(part, nn.ModuleList) else (part,):
                hidden = layer(hidden)
        return hidden


class _Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1, self.block_2 = _Residual(channels, channels), _Residual(channels, channels)

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.block_2(self.block_1(hidden))
        return output


class _Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _Convolution(channels, channels, stride=2)

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.conv(F.pad(hidden, (0, 1, 0, 1)))
        return output


class _Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _Convolution(channels, channels)

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.conv(F.interpolate(hidden, scale_factor=2.0, mode="nearest"))
        return output


class _BitMask(nn.Module):
    def __init__(self, code_bits: int) -> None:
        super().__init__()
        self.lfq = nn.Module()
        self.lfq.register_buffer("mask", bit_mask(code_bits))
