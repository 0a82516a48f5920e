"""The published training step around a frozen Florence-2, in stages that can each be run as advised."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers import Florence2ForConditionalGeneration

from frostline.config import MemoryConfig
from frostline.memory import Workload, estimate
from frostline.proof import Gradients, gradients_of
from frostline.regions import trainable_parameters
from frostline.systems.semcom.backbone import load_backbone, shape_backbone, shape_model
from frostline.systems.semcom.channel import Realisation
from frostline.systems.semcom.config import SemcomSystemConfig
from frostline.systems.semcom.model import SemcomModel
from frostline.systems.semcom.peak_table import Row, Setting, random_batch
from frostline.tracing import build_fake, fake_tensors

_NANO = Setting(system=SemcomSystemConfig(model="nano", codec="linear"), batch_size=4, image_size=64, target_tokens=13)
_PLAIN = MemoryConfig(checkpoint="none", loss_chunk_tokens=0, upstream_chunk=0)


class Outputs(NamedTuple):
    """What a script has at hand after its forward."""

    features: Tensor
    power: Tensor
    rebuilt: Tensor
    logits: Tensor
    loss: Tensor


class Rig:
    """Model, codec, optimizer and one random batch.

    Args:
        florence: The whole model; weights real or fake.
        setting: The size of the step.
        frozen: Whether Florence-2 is frozen and only the codec trains.
    """

    def __init__(self, florence: Florence2ForConditionalGeneration, setting: Setting, *, frozen: bool = True) -> None:
        self.florence = florence
        self.model = SemcomModel(shape_backbone(florence), setting.system, _PLAIN, image_size=setting.image_size)
        parameters = list(trainable_parameters(self.model).values())
        if not frozen:
            florence.requires_grad_(True)
            parameters += florence.parameters()
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4)
        self.batch = random_batch(Row(name="plain"), setting, florence, self.model)

    def tower(self) -> Tensor:
        """The frozen tower's map (B, C, s, s) of the batch's pictures."""
        assert self.batch.pixels is not None
        output: Tensor = self.florence.model.vision_tower(self.batch.pixels.to(self.florence.dtype)).last_hidden_state
        return output

    def forward(self, *, no_grad: Collection[str] = (), detach: Collection[str] = ()) -> Outputs:
        """One forward: tower, compression, channel, decompression, receiver with language model.

        Args:
            no_grad: Which of ``tower``, ``channel`` and ``receiver`` run under `no_grad`.
            detach: Which of ``features`` and ``rebuilt`` are detached.
        """
        model, batch, florence = self.model, self.batch, self.florence
        with _grad_mode("tower" not in no_grad):
            map_BCHW = self.tower()
        features = map_BCHW.flatten(2).transpose(1, 2).float()
        features = features.detach() if "features" in detach else features
        symbols, amplitude = model.transmitter(features, batch.snr_db)
        realisation = Realisation.draw(symbols.shape, batch.noise_seeds)
        with _grad_mode("channel" not in no_grad):
            received = model.channel(symbols, batch.snr_db, realisation)
        rebuilt = model.receiver.features(received, batch.snr_db, amplitude=amplitude, shape=model.shape)
        rebuilt = rebuilt.detach() if "rebuilt" in detach else rebuilt
        with _grad_mode("receiver" not in no_grad):
            rebuilt_BCHW = rebuilt.to(map_BCHW.dtype).transpose(1, 2).reshape(map_BCHW.shape)
            visual = florence.model.multi_modal_projector(rebuilt_BCHW)
            prompt, _ = model.receiver.prompt(batch.tasks)
            answer = florence(inputs_embeds=torch.cat([visual, prompt], 1), labels=batch.labels)
        return Outputs(features, amplitude.square().mean(), rebuilt, answer.logits, answer.loss)

    def autocast_loss(self) -> Tensor:
        """The loss of a forward under bf16 autocast."""
        with torch.autocast("cpu", torch.bfloat16):
            return self.forward().loss

    def update(self, loss: Tensor) -> None:
        """Backward and optimizer; a loss without a graph has no backward."""
        if loss.requires_grad:
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def step(self, *no_grad: str) -> None:
        """One whole training step, with these stages under `no_grad`."""
        self.update(self.forward(no_grad=no_grad).loss)

    def gradients(self, loss: Tensor) -> Gradients:
        """The codec's gradients of a loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        return gradients_of(self.model)


def nano_rig() -> Rig:
    """Real tensors: the nano model with its trained weights and the same new codec every time."""
    torch.manual_seed(0)
    return Rig(_nano(), _NANO)


def peak_bytes(
    setting: Setting,
    step: Callable[[Rig], object],
    *,
    frozen: bool = True,
    dtype: torch.dtype = torch.float32,
) -> int:
    """Bytes alive at the peak of a step on fake tensors.

    Args:
        setting: How large.
        step: One whole training step.
        frozen: Whether only the codec trains.
        dtype: Of Florence-2's weights.
    """

    def workload(florence: Florence2ForConditionalGeneration) -> Workload:
        rig = Rig(florence, setting, frozen=frozen)
        inputs = rig.batch.pixels, rig.batch.labels, rig.batch.snr_db
        return Workload(step=lambda: step(rig), model=rig.model, optimizers=(rig.optimizer,), inputs=inputs)

    return estimate(lambda: shape_model(setting.system.model).to(dtype), workload).peak_bytes


@cache
def plain_peak_bytes(setting: Setting, *, frozen: bool = True) -> int:
    """The peak of the step that follows no advice."""
    return peak_bytes(setting, Rig.step, frozen=frozen)


def saved_bytes(
    setting: Setting,
    forward: Callable[[Rig], object],
    prepare: Callable[[Rig], object] = lambda rig: None,
) -> int:
    """Bytes that autograd keeps for backward beside the weights, on fake tensors; each storage counts once."""
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    mode = fake_tensors()
    florence = build_fake(lambda: shape_model(setting.system.model), mode)
    with mode:
        rig = Rig(florence, setting)
        prepare(rig)
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            forward(rig)
    weights = {parameter.untyped_storage()._cdata for parameter in rig.model.parameters()}
    return sum(storage.nbytes() for key, storage in kept.items() if key not in weights)


@cache
def _nano() -> Florence2ForConditionalGeneration:
    return load_backbone("nano").model


def _grad_mode(enabled: bool) -> AbstractContextManager[None]:
    return nullcontext() if enabled else torch.no_grad()
