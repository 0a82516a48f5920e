"""semcom's byte table: one training step, as people run it and as frostline does."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import truediv
from statistics import median

import torch
from torch import Tensor, nn
from transformers import Florence2ForConditionalGeneration

from frostline.config import MemoryConfig
from frostline.memory import Workload, estimate, measure
from frostline.ops import checkpoint_
from frostline.proof import Gradients, compare_gradients, gradients_of, noise_floor
from frostline.records import MemoryReport, PeakRow, PeakTable
from frostline.regions import trainable_parameters
from frostline.systems.semcom.backbone import TASKS, shape_backbone, shape_model
from frostline.systems.semcom.config import SemcomSystemConfig
from frostline.systems.semcom.data import Batch
from frostline.systems.semcom.model import SemcomModel
from frostline.systems.semcom.reference import plain_loss
from frostline.training import Precision, autocast

_PLAIN = MemoryConfig(checkpoint="none", loss_chunk_tokens=0, upstream_chunk=0)
_LEAN = MemoryConfig(checkpoint="all", loss_chunk_tokens=64, upstream_chunk=1)
_PUBLISHED = SemcomSystemConfig(model="florence-community/Florence-2-base", codec="linear", symbols_per_token=32)
_TIMED_ROUNDS = 9


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The size of the step.

    Attributes:
        system: The model, whose shapes alone matter, and the codec.
        batch_size: Pictures.
        image_size: Height and width in pixels.
        target_tokens: Length of each answer.
        precision: Autocast type of the forward pass.
    """

    system: SemcomSystemConfig = _PUBLISHED
    batch_size: int = 8
    image_size: int = 768
    target_tokens: int = 32
    precision: Precision = "32-true"


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


@dataclass(frozen=True)
class Evidence:
    """What real steps of a row showed: the codec's gradients, and each step's seconds."""

    gradients: Gradients
    seconds: tuple[float, ...]


def peak_table(
    setting: Setting, proof: Setting, rows: Sequence[Row] = ROWS, *, fake: bool, device: str = "cpu"
) -> PeakTable:
    """Count bytes at one size, and compare gradients and times at one that runs.

    Args:
        setting: Where bytes are counted.
        proof: Where gradients are compared with the row ``frozen``, and its fp64 run gives the noise floor.
        rows: Which.
        fake: Count on fake tensors; otherwise really run.
        device: Where real steps run.
    """
    plain_row = next(row for row in ROWS if row.name == "frozen")
    plain, *others = run_steps([plain_row, *rows], proof, device)
    floor = noise_floor(plain.gradients, run_steps([plain_row], proof, device, dtype=torch.float64)[0].gradients)
    system = setting.system
    counted = "fake tensors" if fake else f"real tensors on {device}"
    return PeakTable(
        system="semcom",
        setting=f"{system.model}, batch {setting.batch_size}, {setting.image_size} px, {setting.target_tokens} target"
        f" tokens, {system.codec} codec; bytes on {counted}; gradients and times with the shapes of"
        f" {proof.system.model}, batch {proof.batch_size}, {proof.image_size} px",
        rows=tuple(
            _row(row, _count(row, setting, fake, device), evidence, plain, floor)
            for row, evidence in zip(rows, others, strict=True)
        ),
    )


def _count(row: Row, setting: Setting, fake: bool, device: str) -> MemoryReport:
    if fake:
        return estimate(lambda: build_florence(row, setting), lambda florence: build_workload(row, setting, florence))
    work = build_workload(row, setting, build_florence(row, setting).to(device))
    return measure(work.step, work.model, optimizers=work.optimizers, inputs=work.inputs)


def _row(row: Row, report: MemoryReport, evidence: Evidence, plain: Evidence, floor: float) -> PeakRow:
    codec = {name: evidence.gradients.get(name) for name in plain.gradients}
    trains = any(gradient is not None for gradient in codec.values())
    proof = compare_gradients(plain.gradients, codec, floor=floor)
    return PeakRow(
        name=row.name,
        peak_bytes=report.peak_bytes,
        resident_bytes=report.resident_bytes,
        peak_at=report.peak_at,
        proof_class=proof.proof_class if trains else "none",
        max_rel_grad_diff=proof.worst.max_relative if trains and proof.worst else None,
        trains=("codec" if row.frozen else "everything") if trains else "nothing",
        step_seconds_ratio=median(map(truediv, evidence.seconds, plain.seconds)) if trains else None,
        allocator=report.allocator,
    )


def run_steps(
    rows: Sequence[Row], setting: Setting, device: str = "cpu", *, dtype: torch.dtype | None = None
) -> list[Evidence]:
    """Run rows' forward and backward on real tensors; weights, codec and batch are the same for all of them.

    Rows take turns, so that whatever else the machine is doing slows all of them down alike.

    Args:
        rows: Which ways.
        setting: How large.
        device: Where.
        dtype: Of everything, instead of each row's own.
    """
    steps = [_real_step(row, setting, device, dtype) for row in rows]
    seconds: list[list[float]] = [[] for _ in rows]
    for _ in range(_TIMED_ROUNDS):
        for (step, _), taken in zip(steps, seconds, strict=True):
            start = time.perf_counter()
            step()
            taken.append(time.perf_counter() - start)
    return [Evidence(gradients_of(model), tuple(taken)) for (_, model), taken in zip(steps, seconds, strict=True)]


def _real_step(
    row: Row, setting: Setting, device: str, dtype: torch.dtype | None
) -> tuple[Callable[[], None], SemcomModel]:
    torch.manual_seed(0)
    florence = shape_model(setting.system.model).to(device, dtype or row.dtype)
    loss, model, parameters = build_step(row, setting, florence)
    if dtype is not None:
        model.to(dtype)
    batch = random_batch(replace(row, memory=None), setting, florence, model)
    if row.cached:
        batch = replace(batch, features=model.features_of(batch), pixels=None)

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        value = loss(batch)
        if value.requires_grad:
            value.backward()
        if device == "cuda":
            torch.cuda.synchronize()

    return step, model


def build_florence(row: Row, setting: Setting) -> Florence2ForConditionalGeneration:
    """The frozen model of a row, with initial weights; without its tower where features are cached."""
    florence = shape_model(setting.system.model).to(row.dtype)
    if row.cached:
        florence.model.vision_tower = None
    return florence


def build_workload(row: Row, setting: Setting, florence: Florence2ForConditionalGeneration) -> Workload:
    """A row's training step on random numbers; on real or fake tensors, whichever the model is made of.

    Args:
        row: How.
        setting: How large.
        florence: From `build_florence`.
    """
    step, model, parameters = build_step(row, setting, florence)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    batch = random_batch(row, setting, florence, model)

    def train() -> Tensor:
        loss = step(batch)
        if loss.requires_grad:  # nothing does where everything is under no_grad
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    inputs = [batch.labels, batch.snr_db, batch.features if row.cached else batch.pixels]
    return Workload(step=train, model=model, optimizers=(optimizer,), inputs=inputs)


def build_step(
    row: Row, setting: Setting, florence: Florence2ForConditionalGeneration
) -> tuple[Callable[[Batch], Tensor], SemcomModel, list[nn.Parameter]]:
    """A row's loss, the codec it trains, and all that its optimizer holds."""
    memory = row.memory or _PLAIN
    model = SemcomModel(shape_backbone(florence), setting.system, memory, image_size=setting.image_size)
    if florence.device.type == "cuda":  # fake tensors cannot be moved, and need not be
        model.to(florence.device)
    parameters = list(trainable_parameters(model).values())
    if not row.frozen:
        florence.requires_grad_(True)
        parameters += florence.parameters()
    if memory.recomputes_all:
        checkpoint_(model.receiver.language_model, ["encoder.layers.*", "decoder.layers.*"])

    def loss(batch: Batch) -> Tensor:
        with autocast(setting.precision, florence.device):
            if row.memory is not None:
                return model.loss(batch).total
            return plain_loss(
                model, florence, batch, tower_no_grad=row.tower_no_grad, receiver_no_grad=row.receiver_no_grad
            )

    return loss, model, parameters


def random_batch(row: Row, setting: Setting, florence: Florence2ForConditionalGeneration, model: SemcomModel) -> Batch:
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
        pictures=tuple(range(num)),
    ).to(florence.device)
