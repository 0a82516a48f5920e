"""How much of the answer survives the channel, by SNR: the codec against honest and less honest alternatives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from frostline.records import Curve
from frostline.scenes import COLOURS, RELATIONS, SHAPES, SIZES
from frostline.systems.semcom.channel import Channel, Realisation, real_values, unit_power
from frostline.systems.semcom.data import Batch
from frostline.systems.semcom.model import SemcomModel
from frostline.systems.semcom.receiver import IGNORED

SNRS_DB = (-6.0, -3.0, 0.0, 3.0, 6.0, 10.0, 15.0)
EXACT, TOKENS = "exact answers", "token accuracy"

Rebuild = Callable[[Tensor, Tensor, Sequence[int]], Tensor]
"""Features (B, N, D), snr_db (B,) and channel seeds to features (B, N, D) at the receiver."""


@dataclass(frozen=True)
class Method:
    """One way over the channel.

    Attributes:
        name: What the legend says.
        rebuild: The way.
        note: Bandwidth, side information, and whatever makes the comparison fair or not.
    """

    name: str
    rebuild: Rebuild
    note: str


@torch.no_grad()
def sweep(model: SemcomModel, batches: Iterable[Batch], methods: Sequence[Method]) -> tuple[Curve, ...]:
    """Score every method at every SNR on the same pictures, with the same noise and fading.

    Returns:
        Two curves a method: the share of answers that are right word for word, and the share of right tokens.
    """
    scores = np.zeros((len(methods), len(SNRS_DB), 2))
    counts = np.zeros(2)
    for batch in batches:
        features = model.features_of(batch)
        counted = batch.labels != IGNORED
        counts += (len(batch.tasks), int(counted.sum()))
        for at, snr_db in enumerate(SNRS_DB):
            snrs_db = torch.full_like(batch.snr_db, snr_db)
            for row, method in enumerate(methods):
                rebuilt = method.rebuild(features, snrs_db, batch.noise_seeds)
                best = model.receiver.predict(rebuilt, batch.tasks, batch.labels)
                right = (best == batch.labels) & counted
                scores[row, at] += (int((right | ~counted).all(1).sum()), int(right.sum()))
    shares = scores / counts
    return tuple(
        Curve(
            name=method.name,
            y_name=y_name,
            x=SNRS_DB,
            y=tuple(shares[row, :, kind].tolist()),
            note=method.note,
        )
        for kind, y_name in enumerate((EXACT, TOKENS))
        for row, method in enumerate(methods)
    )


def raw_features(channel: Channel) -> Rebuild:
    """Every feature value on the channel, two to a symbol; the receiver is told each picture's amplitude."""

    def rebuild(features: Tensor, snr_db: Tensor, seeds: Sequence[int]) -> Tensor:
        symbols, amplitude = unit_power(features)
        received = channel(symbols, snr_db, Realisation.draw(symbols.shape, seeds, symbols.device))
        return real_values(received) * amplitude.view(-1, 1, 1)

    return rebuild


class PrincipalComponents:
    """The best linear code for the features themselves: PCA, with a Wiener filter at the receiver.

    The leading 2c components of each token go on the channel as they are; the receiver is told each picture's
    amplitude, and on AWGN shrinks component i by v_i / (v_i + e), where v_i is its variance and e that of the noise
    on it (under fading the channel's own MMSE has shrunk it already). Both favour this baseline.

    Args:
        features: Training features in blocks (P, N, D).
        symbols_per_token: Complex channel uses c of each token, at most D / 2.
        channel: What they are sent over.
    """

    def __init__(self, features: Iterable[Tensor], symbols_per_token: int, channel: Channel) -> None:
        count, total, second = 0, torch.zeros(()), torch.zeros(())
        for block in features:
            tokens = block.flatten(0, 1).double()
            count, total, second = count + len(tokens), total + tokens.sum(0), second + tokens.T @ tokens
        mean = total / count
        variance, directions = torch.linalg.eigh(second / count - torch.outer(mean, mean))
        leading = slice(-2 * symbols_per_token, None)
        self._mean, self._basis = mean.float(), directions.T[leading].float()
        self._variance = variance[leading].float()
        self._channel = channel

    def __call__(self, features: Tensor, snr_db: Tensor, seeds: Sequence[int]) -> Tensor:
        """Features (B, N, D) to features (B, N, D) at the receiver."""
        symbols, amplitude = unit_power((features - self._mean) @ self._basis.T)
        received = self._channel(symbols, snr_db, Realisation.draw(symbols.shape, seeds, symbols.device))
        scale = amplitude.view(-1, 1, 1)
        noise_power = 10 ** (-snr_db.view(-1, 1, 1) / 10) if self._channel.kind == "awgn" else 0.0
        shrink = self._variance / (self._variance + scale.square() * noise_power / 2)
        rebuilt: Tensor = real_values(received) * scale * shrink @ self._basis + self._mean
        return rebuilt


def send_the_answer(num_symbols: int, kind: str) -> Curve:
    """The bound for a transmitter that can answer by itself: send the caption's bits with an ideal code.

    A scene's caption carries log2(18,432) = 14.17 bits. AWGN carries k log2(1 + SNR) bits in k uses; under block
    fading that is a random number, and the share of pictures it suffices for is exp(-(2^(bits/k) - 1) / SNR).
    """
    bits = math.log2(len(SIZES) ** 2 * len(COLOURS) ** 2 * len(SHAPES) ** 2 * len(RELATIONS))
    needed = 2 ** (bits / num_symbols) - 1

    def share(snr_db: float) -> float:
        snr = 10 ** (snr_db / 10)
        if kind == "rayleigh":
            return math.exp(-needed / snr)
        return float(kind == "noiseless" or snr >= needed)

    return Curve(
        name="send the answer (bound)",
        y_name=EXACT,
        x=SNRS_DB,
        y=tuple(share(snr_db) for snr_db in SNRS_DB),
        note=f"{bits:.1f} bits at capacity in {num_symbols} uses; the transmitter must run the language model",
    )
