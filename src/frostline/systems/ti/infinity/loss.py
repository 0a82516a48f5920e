"""How wrong the predicted bits are, and how much each scale counts."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from frostline.errors import ConfigError, ShapeError
from frostline.systems.ti.infinity.schedule import Schedule

ScaleWeighting = Literal["tokens", "sides", "scales"]
"""Every token counts the same; one over the square root of its scale's tokens, as published; every scale the same."""


def bit_losses(logits: Tensor, bits: Tensor) -> Tensor:
    """Cross-entropy of each token, the mean over its bits (arXiv 2412.04431, section 3.2).

    Args:
        logits: Shape (B, L, D, 2).
        bits: 0 or 1, any integer type, shape (B, L, D).

    Returns:
        Shape (B, L), in nats, float32 at least.

    Raises:
        ShapeError: The two do not fit each other.
    """
    if logits.shape != (*bits.shape, 2):
        raise ShapeError("logits", expected=(*bits.shape, 2), actual=tuple(logits.shape))
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide.flatten(0, 2), bits.long().flatten(), reduction="none").view(bits.shape).mean(-1)


def scale_weights(schedule: Schedule, weighting: ScaleWeighting) -> Tensor:
    """Each token's share in the loss, shape (L,), with the sum 1.

    Raises:
        ConfigError: No such weighting.
    """
    if weighting not in get_args(ScaleWeighting):
        raise ConfigError(f"weighting is {weighting!r}", do=f"choose one of {', '.join(get_args(ScaleWeighting))}")
    power = {"tokens": 0.0, "sides": -0.5, "scales": -1.0}[weighting]
    lengths = torch.tensor(schedule.lengths)
    weights = lengths.double().pow(power).repeat_interleave(lengths, output_size=schedule.num_tokens)
    return (weights / weights.sum()).float()


def mean_per_scale(losses: Tensor, schedule: Schedule) -> Tensor:
    """The mean of token losses (B, L) over each scale's tokens and all samples, shape (scales,)."""
    return torch.stack([losses[:, span].mean() for span in schedule.spans])
