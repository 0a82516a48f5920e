"""The loss: how wrong the predicted bits of pictures are, scale by scale."""

from __future__ import annotations

from torch import Tensor

from frostline.systems.ti.batches import Batch
from frostline.systems.ti.infinity.loss import bit_losses, mean_per_scale
from frostline.systems.ti.infinity.schedule import Schedule
from frostline.systems.ti.infinity.text import CompactText
from frostline.systems.ti.infinity.transformer import Infinity
from frostline.training import Loss


def concept_loss(transformer: Infinity, text: CompactText, batch: Batch, schedule: Schedule, weights: Tensor) -> Loss:
    """Cross-entropy of a batch's bits, in nats, with each scale's own mean as a term.

    Prompts are never dropped: a sample without its prompt gives a concept a gradient of 0.

    Args:
        transformer: Frozen.
        text: Features of the batch's prompts, the concepts in them.
        batch: On the transformer's device.
        schedule: Of L tokens.
        weights: Of each token, (L,), with the sum 1; see `scale_weights`.
    """
    losses = bit_losses(transformer(text, batch.inputs, schedule), batch.bits)
    total = (losses * weights).sum(1).mean()
    means = mean_per_scale(losses.detach(), schedule)
    names = [f"bits {height}x{width}" for height, width in schedule.grids]
    return Loss(total, dict(zip(names, means.unbind(), strict=True)))
