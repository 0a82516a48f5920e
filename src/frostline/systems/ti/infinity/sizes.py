"""The sizes of the published transformers and tokenizers, and of any other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from frostline.errors import ConfigError

CrossAttentionType = Literal["float32", "bfloat16"]
"""In which type float32 queries look at the text: the published kernel has no float32."""


@dataclass(frozen=True, kw_only=True)
class InfinityConfig:
    """The size of a transformer.

    Attributes:
        depth: Blocks.
        width: Values of a token inside, C.
        num_heads: Of self-attention and cross-attention.
        text_width: Values of a text feature.
        code_bits: Channels of the tokenizer's features.
        patchify: Whether a token holds 2 x 2 cells of them.
        max_text_tokens: Rows of the null prompt.
        mlp_ratio: Hidden values of the feed-forward network for one inside, before they are rounded to 256s.
        num_chunks: Into how many named chunks the blocks are parted; 1 for none. It only shows in names.
        pool_heads: Heads of the pooling of text features; 0 is the published rule, one for 128 text values (for 64
            where `width` is above 4096).
        num_levels: Rows of the scales' embedding.
        cross_attention: Its type where queries are float32; under autocast it is autocast's.
    """

    depth: int
    width: int
    num_heads: int
    text_width: int = 2048
    code_bits: int = 32
    patchify: bool = False
    max_text_tokens: int = 512
    mlp_ratio: float = 4.0
    num_chunks: int = 1
    pool_heads: int = 0
    num_levels: int = 15
    cross_attention: CrossAttentionType = "bfloat16"

    def __post_init__(self) -> None:
        if self.width % self.num_heads or self.head_width % 4:
            raise ConfigError(
                f"{self.num_heads} heads share a width of {self.width}",
                do="choose a width of 4 x heads or a multiple of it: half of a head's pairs turn with each axis",
            )
        if self.width % self.num_pool_heads:
            raise ConfigError(
                f"{self.num_pool_heads} heads pool text into a width of {self.width}", do="set pool_heads to a divisor"
            )
        if self.depth % self.num_chunks:
            raise ConfigError(f"{self.depth} blocks cannot be parted into {self.num_chunks} equal chunks")

    @property
    def head_width(self) -> int:
        """Values of one head."""
        return self.width // self.num_heads

    @property
    def hidden_width(self) -> int:
        """Hidden values of the feed-forward network."""
        return round(self.width * self.mlp_ratio / 256) * 256

    @property
    def token_bits(self) -> int:
        """Bits of one token, D."""
        return self.code_bits * (4 if self.patchify else 1)

    @property
    def num_pool_heads(self) -> int:
        """Heads of the pooling of text features."""
        return self.pool_heads or max(1, self.text_width // (64 if self.width > 4096 else 128))


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """The size of a tokenizer.

    Attributes:
        code_bits: Channels of the features.
        base_channels: Of the first convolution.
        channel_multiples: Channels of each level, in `base_channels`; each level but the last halves the picture.
        num_res_blocks: Of a level in the encoder; the decoder's have one more.
    """

    code_bits: int = 32
    base_channels: int = 128
    channel_multiples: tuple[int, ...] = (1, 2, 4, 4, 4)
    num_res_blocks: int = 2

    def __post_init__(self) -> None:
        for multiple in self.channel_multiples:
            channels = self.base_channels * multiple
            if channels % 32 and channels % 24:
                raise ConfigError(
                    f"a level of {channels} channels cannot be normalised in 32 or 24 groups",
                    do="choose base_channels as a multiple of 24 or 32",
                )

    @property
    def stride(self) -> int:
        """Pixels of a cell along each axis."""
        return int(2 ** (len(self.channel_multiples) - 1))


def _transformer(depth: int, width: int, num_heads: int, num_chunks: int, code_bits: int = 32) -> InfinityConfig:
    patchify = code_bits == 14
    return InfinityConfig(
        depth=depth, width=width, num_heads=num_heads, num_chunks=num_chunks, code_bits=code_bits, patchify=patchify
    )


TRANSFORMERS: Mapping[str, InfinityConfig] = {
    "infinity-2b": _transformer(32, 2048, 16, 8),
    "infinity-8b": _transformer(40, 3584, 28, 8, code_bits=14),
    "infinity-125m": _transformer(12, 768, 8, 4, code_bits=16),
}
"""Published transformers by name; `code_bits` is their tokenizer's."""

TOKENIZERS: Mapping[str, TokenizerConfig] = {
    **{f"d{code_bits}": TokenizerConfig(code_bits=code_bits) for code_bits in (16, 24, 32, 64)},
    "d56-patchify": TokenizerConfig(code_bits=14, channel_multiples=(1, 2, 4, 4)),
}
"""Published tokenizers by name; the last one's 2 x 2 cells make one token of 56 bits."""
