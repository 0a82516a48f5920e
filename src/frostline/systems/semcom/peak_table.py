"""The rows of semcom's byte table: one training step, as people run it and as frostline does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from frostline.config import MemoryConfig
from frostline.memory import Workload
from frostline.ops import checkpoint_
from frostline.regions import trainable_parameters
from frostline.systems.semcom.backbone import TASKS, shape_backbone, shape_model
from frostline.systems.semcom.config import SemcomSystemConfig
from frostline.systems.semcom.data import Batch
from frostline.systems.semcom.model import SemcomModel
from frostline.systems.semcom.reference import plain_loss

_PLAIN = MemoryConfig(checkpoint="none", loss_chunk_tokens=0, upstream_chunk=0)
_LEAN = MemoryConfig(checkpoint="all", loss_chunk_tokens=64, upstream_chunk=1)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The size of the step.

    Attributes:
        model: Whose shapes.
        batch_size: Pictures.
        image_size: Height and width in pixels.
        target_tokens: Length of each answer.
        symbols_per_token: Of the linear codec.
    """

    model: str = "florence-community/Florence-2-base"
    batch_size: int = 8
    image_size: int = 768
    target_tokens: int = 32
    symbols_per_token: int = 32


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to run the step.

    Attributes:
        name: Its name in the table.
        memory: What frostline trades for memory; the plain step where it is left out.
        frozen: Whether the model's weights are frozen.
        tower_no_grad: The tower under `no_grad`.
        receiver_no_grad: All behind the codec under `no_grad`.
    """

    name: str
    memory: MemoryConfig | None = None
    frozen: bool = True
    tower_no_grad: bool = False
    receiver_no_grad: bool = False

    @property
    def cached(self) -> bool:
        """Whether features come from a cache, and the tower is not loaded."""
        return self.memory is not None and self.memory.feature_cache != "none"

    @property
    def dtype(self) -> torch.dtype:
        """Of the frozen weights."""
        return torch.bfloat16 if self.memory and self.memory.frozen_dtype == "bfloat16" else torch.float32


ROWS = (
    Row(name="unfrozen", frozen=False),
    Row(name="frozen"),
    Row(name="published-advice", tower_no_grad=True),
    Row(name="frostline", memory=_LEAN),
    Row(name="frostline-cached", memory=replace(_LEAN, feature_cache="memory")),
    Row(name="frostline-bf16", memory=replace(_LEAN, frozen_dtype="bfloat16")),
    Row(name="frostline-bf16-cached", memory=replace(_LEAN, frozen_dtype="bfloat16", feature_cache="memory")),
    Row(name="no-grad-everything", tower_no_grad=True, receiver_no_grad=True),
)


def build_florence(row: Row, setting: Setting) -> nn.Module:
    """The frozen model of a row, with initial weights; without its tower where features are cached."""
    florence = shape_model(setting.model).to(row.dtype)
    if row.cached:
        florence.model.vision_tower = None
    return florence


def build_workload(row: Row, setting: Setting, florence: nn.Module, batch: Batch | None = None) -> Workload:
    """A row's training step around its model; on real or fake tensors, whichever the model is made of.

    Args:
        row: How.
        setting: How large.
        florence: From `build_florence`.
        batch: What to train on; random numbers where left out.
    """
    step, model, parameters = build_step(row, setting, florence)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    fixed = random_batch(row, setting, florence, model) if batch is None else batch

    def train() -> None:
        loss = step(fixed)
        if loss.requires_grad:  # nothing does where everything is under no_grad
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    inputs = [fixed.labels, fixed.snr_db, fixed.features if row.cached else fixed.pixels]
    return Workload(step=train, model=model, optimizers=(optimizer,), inputs=inputs)


def build_step(
    row: Row, setting: Setting, florence: nn.Module
) -> tuple[Callable[[Batch], Tensor], SemcomModel, list[nn.Parameter]]:
    """A row's loss, the codec it trains, and all that its optimizer holds."""
    system = SemcomSystemConfig(codec="linear", symbols_per_token=setting.symbols_per_token)
    memory = row.memory or _PLAIN
    model = SemcomModel(shape_backbone(florence), system, memory, image_size=setting.image_size)
    parameters = list(trainable_parameters(model).values())
    if not row.frozen:
        florence.requires_grad_(True)
        parameters += florence.parameters()
    if memory.checkpoint == "all":
        checkpoint_(model.receiver.language_model, ["encoder.layers.*", "decoder.layers.*"])

    def loss(batch: Batch) -> Tensor:
        if row.memory is not None:
            return model.loss(batch).total
        return plain_loss(
            model, florence, batch, tower_no_grad=row.tower_no_grad, receiver_no_grad=row.receiver_no_grad
        )

    return loss, model, parameters


def random_batch(row: Row, setting: Setting, florence: nn.Module, model: SemcomModel) -> Batch:
    """Random pictures, or features, and answers."""
    size, num = setting.image_size, setting.batch_size
    vocabulary = florence.config.text_config.vocab_size
    return Batch(
        pixels=None if row.cached else torch.randn(num, 3, size, size, dtype=row.dtype),
        features=torch.randn(num, *model.shape) if row.cached else None,
        labels=torch.randint(3, vocabulary, (num, setting.target_tokens)),
        snr_db=torch.full((num,), 10.0),
        tasks=(TASKS["caption"],) * num,
        answers=("",) * num,
        noise_seeds=tuple(range(num)),
    )
