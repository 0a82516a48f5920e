"""The step as people write it: the frozen model called whole behind the codec, nothing traded for memory.

frostline's own step is proven against this one, gradient by gradient, and the byte table starts from it.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor
from transformers import Florence2ForConditionalGeneration

from frostline.systems.semcom.data import Batch
from frostline.systems.semcom.model import SemcomModel


def plain_loss(
    model: SemcomModel,
    florence: Florence2ForConditionalGeneration,
    batch: Batch,
    *,
    tower_no_grad: bool = False,
    receiver_no_grad: bool = False,
) -> Tensor:
    """Mean cross-entropy of the answers, in nats a token.

    Args:
        model: The codec and the channel.
        florence: The whole model around them.
        batch: With pixels, one task for all samples, and the receiver's prompt.
        tower_no_grad: Published advice: the tower under `no_grad`.
        receiver_no_grad: Published advice: everything behind the codec under `no_grad`.
    """
    projector = florence.model.multi_modal_projector
    behind_tower = model.transmitter.projector is None
    with torch.no_grad() if tower_no_grad else nullcontext():
        map_NCHW = florence.model.vision_tower(batch.pixels).last_hidden_state
        features = map_NCHW.flatten(2).transpose(1, 2) if behind_tower else projector(map_NCHW)
    rebuilt = model(features, batch.snr_db, batch.noise_seeds)
    with torch.no_grad() if receiver_no_grad else nullcontext():
        visual = projector(rebuilt.transpose(1, 2).reshape(map_NCHW.shape)) if behind_tower else rebuilt
        prompt, _ = model.receiver.prompt(batch.tasks)
        loss: Tensor = florence(inputs_embeds=torch.cat([visual, prompt], 1), labels=batch.labels).loss
    return loss
