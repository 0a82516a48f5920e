"""The trainable part: what is sent instead of the features, and how they are rebuilt.

A compression maps features (B, N, D) and snr_db (B,) to real values (B, ..., 2c), which the transmitter pairs into
c complex symbols; a decompression maps the received values, in the same shape, and snr_db back to (B, N, D). Any
`nn.Module` with these two signatures will do.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class LinearCompression(nn.Module):
    """One linear map for every token, whatever the SNR.

    Args:
        dim: Feature width D.
        symbols_per_token: Complex channel uses c of each token.
    """

    def __init__(self, dim: int, symbols_per_token: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, 2 * symbols_per_token)

    def forward(self, features: Tensor, snr_db: Tensor) -> Tensor:
        """(B, N, D) to (B, N, 2c)."""
        values: Tensor = self.project(features)
        return values


class LinearDecompression(nn.Module):
    """One linear map back.

    Args:
        dim: Feature width D.
        symbols_per_token: Complex channel uses c of each token.
    """

    def __init__(self, dim: int, symbols_per_token: int) -> None:
        super().__init__()
        self.project = nn.Linear(2 * symbols_per_token, dim)

    def forward(self, received: Tensor, snr_db: Tensor) -> Tensor:
        """(B, N, 2c) to (B, N, D)."""
        features: Tensor = self.project(received)
        return features


class AdaptiveMLP(nn.Module):
    """A token-wise MLP whose hidden units are scaled and shifted by the SNR; one model serves a whole SNR range.

    The modulation starts at zero, so training begins from the plain MLP. (FiLM: Perez et al., 2018; attention on
    the SNR for joint source-channel coding: Xu et al., ADJSCC, 2021.)

    Args:
        in_dim: Input width.
        out_dim: Output width.
        hidden_dim: Width between.
    """

    def __init__(self, in_dim: int, out_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.rise = nn.Linear(in_dim, hidden_dim)
        self.modulate = nn.Linear(1, 2 * hidden_dim)
        self.fall = nn.Linear(hidden_dim, out_dim)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, tokens: Tensor, snr_db: Tensor) -> Tensor:
        """(B, N, in_dim) and (B,) to (B, N, out_dim)."""
        scale, shift = self.modulate(snr_db.to(tokens.dtype)[:, None, None] / 10).chunk(2, -1)
        output: Tensor = self.fall(F.gelu(self.rise(tokens)) * (1 + scale) + shift)
        return output


def build_codec(kind: str, dim: int, symbols_per_token: int, hidden_dim: int) -> tuple[nn.Module, nn.Module]:
    """Compression and decompression of a kind, ``adaptive`` or ``linear``."""
    if kind == "linear":
        return LinearCompression(dim, symbols_per_token), LinearDecompression(dim, symbols_per_token)
    values = 2 * symbols_per_token
    return AdaptiveMLP(dim, values, hidden_dim), AdaptiveMLP(values, dim, hidden_dim)
