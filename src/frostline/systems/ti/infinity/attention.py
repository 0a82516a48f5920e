"""Attention among a picture's tokens, from them to the text, and from one learned query to the text."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frostline.errors import StepError
from frostline.systems.ti.infinity.rope import rotate
from frostline.systems.ti.infinity.sizes import InfinityConfig

_LARGEST_SCALE = math.log(100)
_SMALLEST_NORM = 1e-12


@dataclass
class KeyValueCache:
    """Keys and values of the scales so far, of one block; each of shape (B, heads, tokens, head width)."""

    keys: Tensor | None = None
    values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append one scale's, and return all."""
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)
        self.keys, self.values = keys, values
        return keys, values


class SelfAttention(nn.Module):
    """Block-causal attention: a token sees its own scale and the coarser ones.

    Queries and keys have length 1, the former times a learned scale of each head, and turn with their positions.
    Each scale's queries meet the keys they may see, without a mask, so no L x L matrix is ever made.

    Args:
        config: Of the transformer.
    """

    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        self.num_heads, width = config.num_heads, config.width
        self.scale_mul_1H11 = nn.Parameter(torch.empty(1, self.num_heads, 1, 1))
        self.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.proj = nn.Linear(width, width)
        nn.init.constant_(self.scale_mul_1H11, math.log(4))
        nn.init.zeros_(self.q_bias)
        nn.init.zeros_(self.v_bias)

    def forward(self, tokens: Tensor, turns: Tensor, ends: tuple[int, ...], cache: KeyValueCache | None) -> Tensor:
        """Attend.

        Args:
            tokens: Shape (B, n, C).
            turns: Of these tokens, shape (n, head width / 2), complex.
            ends: Where each scale ends among them.
            cache: Scales before these tokens; these are appended.

        Returns:
            Shape (B, n, C).

        Raises:
            StepError: The weights are stored in bfloat16, and the call is not under autocast to it.
        """
        _refuse_stored_without_autocast(self.mat_qkv.weight, tokens)
        bias = torch.cat([self.q_bias, self.zero_k_bias, self.v_bias])  # type: ignore[list-item]
        qkv = F.linear(tokens, self.mat_qkv.weight, bias).unflatten(-1, (3, self.num_heads, -1))
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)
        with torch.autocast(tokens.device.type, enabled=False):
            strength = self.scale_mul_1H11.clamp_max(_LARGEST_SCALE).exp()
            queries = rotate(queries * (strength / _norm(queries)), turns).to(values.dtype)
            keys = rotate(keys * (1 / _norm(keys)), turns).to(values.dtype)
        if cache is not None:
            keys, values = cache.extend(keys, values)
        num_before, start = keys.size(2) - queries.size(2), 0
        seen = []
        for end in ends:
            asked, last = queries[:, :, start:end], num_before + end
            found = F.scaled_dot_product_attention(asked, keys[:, :, :last], values[:, :, :last], scale=1.0)
            seen.append(found.transpose(1, 2).flatten(2))
            start = end
        output: Tensor = self.proj(torch.cat(seen, 1) if len(seen) > 1 else seen[0])
        return output


class CrossAttention(nn.Module):
    """Attention to text features.

    Float32 queries are taken to `InfinityConfig.cross_attention` for the attention itself, as in the published code.

    Args:
        config: Of the transformer.
        text_width: Values of a text feature.
        num_heads: Heads.
        pools: Whether one learned query stands for the tokens.
    """

    def __init__(self, config: InfinityConfig, *, text_width: int, num_heads: int, pools: bool = False) -> None:
        super().__init__()
        self.num_heads, width = num_heads, config.width
        self.attention_dtype: torch.dtype = getattr(torch, config.cross_attention)
        self.mat_q = nn.Parameter(torch.empty(1, num_heads, width // num_heads)) if pools else nn.Linear(width, width)
        self.mat_kv = nn.Linear(text_width, 2 * width, bias=False)
        self.v_bias = nn.Parameter(torch.empty(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.proj = nn.Linear(width, width)
        nn.init.zeros_(self.v_bias)
        if isinstance(self.mat_q, nn.Parameter):
            nn.init.trunc_normal_(self.mat_q, std=math.sqrt(1 / width / 3))

    def forward(self, tokens: Tensor | None, text: Tensor, mask: Tensor | None) -> Tensor:
        """Attend.

        Args:
            tokens: Shape (B, n, C); None where one learned query pools.
            text: Shape (B, T, text width).
            mask: Which of T are there, bool of shape (B, 1, 1, T); None where all are.

        Returns:
            Shape (B, n, C), n = 1 where it pools.
        """
        bias = torch.cat([self.zero_k_bias, self.v_bias])  # type: ignore[list-item]
        found = F.linear(text, self.mat_kv.weight, bias).unflatten(-1, (2, self.num_heads, -1))
        keys, values = found.permute(2, 0, 3, 1, 4)
        if tokens is None:
            assert isinstance(self.mat_q, nn.Parameter)
            queries = self.mat_q[:, :, None].expand(text.size(0), -1, -1, -1).to(keys.dtype)
        else:
            assert isinstance(self.mat_q, nn.Linear)
            queries = self.mat_q(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        dtype = queries.dtype
        if dtype is torch.float32:
            queries, keys, values = (tensor.to(self.attention_dtype) for tensor in (queries, keys, values))
        seen = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        output: Tensor = self.proj(seen.transpose(1, 2).flatten(2).to(dtype))
        return output


def _refuse_stored_without_autocast(weight: Tensor, tokens: Tensor) -> None:
    if weight.dtype is torch.bfloat16 and tokens.dtype is torch.float32:
        kind = tokens.device.type
        if not torch.is_autocast_enabled(kind) or torch.get_autocast_dtype(kind) is not torch.bfloat16:
            raise StepError(
                "blocks whose weights are stored in bfloat16 were called with float32 tokens and no autocast",
                do="run the step under torch.autocast(..., torch.bfloat16), or take the treatment off",
            )


def _norm(vectors: Tensor) -> Tensor:
    # In float32 at least; the vectors themselves stay as they are, which is what backward keeps.
    wide = torch.promote_types(vectors.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True, dtype=wide)
    return norm.clamp_min(_SMALLEST_NORM)
