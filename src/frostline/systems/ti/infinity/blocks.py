"""One block of the transformer, and the parts that its norms need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from frostline.systems.ti.infinity.attention import CrossAttention, KeyValueCache, SelfAttention
from frostline.systems.ti.infinity.sizes import InfinityConfig

EPSILON = 1e-6
"""Of every norm."""


def modulate(tokens: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Layer norm without weights, times 1 + scale, plus shift: tokens (B, n, C), the others (B, 1, C)."""
    return torch.addcmul(shift, F.layer_norm(tokens, tokens.shape[-1:], eps=EPSILON), 1 + scale)


class RMSNorm(nn.Module):
    """Root mean square norm with a weight.

    Args:
        width: Of the last dimension.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        nn.init.ones_(self.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Any shape (..., width)."""
        return features * torch.rsqrt(features.pow(2).mean(-1, keepdim=True) + EPSILON) * self.weight


class FeedForward(nn.Module):
    """Two layers with tanh-GELU between.

    Args:
        config: Of the transformer.
    """

    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.hidden_width)
        self.fc2 = nn.Linear(config.hidden_width, config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, n, C) to the same shape."""
        output: Tensor = self.fc2(F.gelu(self.fc1(tokens), approximate="tanh"))
        return output


class AdaptiveHeadNorm(nn.Module):
    """The norm before the head, whose scale and shift come from the pooled text.

    Args:
        width: C.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, tokens: Tensor, pooled: Tensor) -> Tensor:
        """Tokens (B, n, C) and pooled text (B, C) to (B, n, C)."""
        scale, shift = self.ada_lin(pooled).unflatten(-1, (2, -1)).unsqueeze(1).unbind(2)
        return modulate(tokens, scale.to(tokens.dtype), shift.to(tokens.dtype))


class Block(nn.Module):
    """Self-attention, attention to the text, feed-forward network; the text modulates the first and the last.

    The residual stream keeps its type, which is float32 under autocast.

    Args:
        config: Of the transformer.

    Attributes:
        recomputes_parts: Whether each of the three parts keeps only its input for backward. It depends on this
            alone, not on `training`.
    """

    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        self.sa = SelfAttention(config)
        self.ca = CrossAttention(config, text_width=config.width, num_heads=config.num_heads)
        self.ffn = FeedForward(config)
        self.ca_norm = nn.LayerNorm(config.width, eps=EPSILON)
        self.ada_gss = nn.Parameter(torch.empty(1, 1, 6, config.width))
        self.recomputes_parts = False
        nn.init.normal_(self.ada_gss, std=config.width**-0.5)

    def forward(
        self,
        tokens: Tensor,
        modulation: Tensor,
        text: Tensor,
        mask: Tensor | None,
        turns: Tensor,
        ends: tuple[int, ...],
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """One step of the residual stream.

        Args:
            tokens: Shape (B, n, C).
            modulation: Gates, scales and shifts that the text asks of all blocks, shape (B, 1, 6, C).
            text: Shape (B, T, C).
            mask: Which of T are there, bool of shape (B, 1, 1, T); None where all are.
            turns: Rotations of these tokens.
            ends: Where each scale ends among them.
            cache: Keys and values of the scales before.

        Returns:
            Shape (B, n, C).
        """
        gate_1, gate_2, scale_1, scale_2, shift_1, shift_2 = (self.ada_gss + modulation).unbind(2)
        tokens = self._run(self._attend, tokens, gate_1, scale_1, shift_1, turns, ends, cache)
        tokens = self._run(self._look, tokens, text, mask)
        return self._run(self._feed, tokens, gate_2, scale_2, shift_2)

    def _run(self, part: Callable[..., Tensor], *arguments: Any) -> Tensor:
        if not self.recomputes_parts or not torch.is_grad_enabled():
            return part(*arguments)
        output: Tensor = checkpoint(part, *arguments, use_reentrant=False)
        return output

    def _attend(self, tokens: Tensor, gate: Tensor, scale: Tensor, shift: Tensor, *rest: Any) -> Tensor:
        change: Tensor = self.sa(modulate(tokens, scale, shift), *rest)
        return tokens + change * gate

    def _look(self, tokens: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        change: Tensor = self.ca(self.ca_norm(tokens), text, mask)
        return tokens + change

    def _feed(self, tokens: Tensor, gate: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        change: Tensor = self.ffn(modulate(tokens, scale, shift))
        return tokens + change * gate
