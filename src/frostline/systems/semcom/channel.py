"""The channel: complex baseband symbols, noise and fading, all inside the graph.

Symbols have unit average power in each sample, E|z|^2 = 1. Then SNR = Es/N0 and the noise n ~ CN(0, N0) has

    N0 = 10^(-SNR_dB / 10),   N0/2 in each real dimension.

awgn: y = z + n. rayleigh: y = h z + n with one h ~ CN(0, 1) a sample (block fading), known to the receiver, which
equalises by MMSE: h* y / (|h|^2 + N0). The SNR of a fading channel is the average one. (Tse & Viswanath,
Fundamentals of Wireless Communication, sections 2.2 and 3.1.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from frostline.errors import ConfigError, ShapeError

ChannelKind = Literal["noiseless", "awgn", "rayleigh"]


@dataclass(frozen=True)
class Realisation:
    """What the channel happened to do: unit noise (B, ...) and gain (B,), both CN(0, 1), complex."""

    noise: Tensor
    gain: Tensor

    @staticmethod
    def draw(shape: Sequence[int], seeds: Sequence[int], device: torch.device | str = "cpu") -> Realisation:
        """Draw from one seed a sample, so that neither batch nor process count changes a sample's channel.

        Args:
            shape: Shape of the symbols, batch first.
            seeds: As many as there are samples.
            device: Where the realisation is needed.
        """
        num_symbols = int(np.prod(shape[1:]))
        rows = [np.random.default_rng(seed).standard_normal((num_symbols + 1, 2), np.float32) for seed in seeds]
        unit = torch.view_as_complex(torch.tensor(np.array(rows) * np.float32(0.5**0.5))).to(device)
        return Realisation(noise=unit[:, 1:].reshape(tuple(shape)), gain=unit[:, 0])


class Channel(nn.Module):
    """Carries symbols to the receiver, and equalises what fading did to them.

    Args:
        kind: ``noiseless``, ``awgn`` or ``rayleigh``.

    Raises:
        ConfigError: Another kind.
    """

    def __init__(self, kind: ChannelKind = "awgn") -> None:
        super().__init__()
        if kind not in ("noiseless", "awgn", "rayleigh"):
            raise ConfigError(f"no channel {kind!r}", do="choose noiseless, awgn or rayleigh")
        self.kind = kind

    def forward(self, symbols: Tensor, snr_db: Tensor, realisation: Realisation | None = None) -> Tensor:
        """Transmit.

        Args:
            symbols: Complex (B, ...), unit average power in each sample.
            snr_db: Es/N0 in dB, real (B,).
            realisation: Noise and gain; drawn from torch's global generator when left out.

        Returns:
            The symbols as the receiver has them after equalisation, complex (B, ...).

        Raises:
            ShapeError: `snr_db` or the realisation does not fit the symbols.
        """
        if snr_db.shape != symbols.shape[:1]:
            raise ShapeError("snr_db", expected=(symbols.shape[0],), actual=tuple(snr_db.shape), where="Channel")
        if self.kind == "noiseless":
            return symbols
        if realisation is None:
            noise = torch.randn_like(symbols)
            realisation = Realisation(noise, torch.randn_like(symbols.flatten(1)[:, 0]))
        elif realisation.noise.shape != symbols.shape:
            actual = tuple(realisation.noise.shape)
            raise ShapeError("the channel noise", expected=tuple(symbols.shape), actual=actual, where="Channel")
        noise, gain = realisation.noise.to(symbols.dtype), realisation.gain.to(symbols.dtype)
        per_sample = (-1,) + (1,) * (symbols.dim() - 1)
        noise_power = (10 ** (-snr_db.to(symbols.real.dtype) / 10)).view(per_sample)
        noise = noise * noise_power.sqrt()
        if self.kind == "awgn":
            return symbols + noise
        gain = gain.view(per_sample)
        return gain.conj() * (gain * symbols + noise) / (gain.abs().square() + noise_power)


def unit_power(values: Tensor) -> tuple[Tensor, Tensor]:
    """Pair real values into complex symbols of unit average power in each sample.

    The power stays in the graph: a loss that ignores the scale of `values` then sends no gradient along them
    (a detached power would tell the encoder to grow for ever).

    Args:
        values: Real (B, ..., 2c).

    Returns:
        Symbols, complex (B, ..., c), and the amplitude (B,) that was divided out.

    Raises:
        ShapeError: An odd number of values cannot be paired.
    """
    if values.dim() < 2 or values.shape[-1] % 2:
        raise ShapeError(
            "the compression's output",
            expected=("batch", "...", "an even number"),
            actual=tuple(values.shape),
            where="Transmitter",
            do="a channel symbol is a pair of real values: make the last dimension even",
        )
    values = values.to(torch.promote_types(values.dtype, torch.float32))  # complex has no half precision
    symbols = torch.view_as_complex(values.unflatten(-1, (-1, 2)).contiguous())
    power = symbols.abs().square().flatten(1).mean(1).clamp_min(torch.finfo(values.dtype).tiny)
    amplitude = power.sqrt()
    return symbols / amplitude.view((-1,) + (1,) * (symbols.dim() - 1)), amplitude


def real_values(symbols: Tensor) -> Tensor:
    """Complex (B, ..., c) back to real (B, ..., 2c), the inverse of the pairing in `unit_power`."""
    return torch.view_as_real(symbols).flatten(-2)
