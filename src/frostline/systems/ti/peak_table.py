"""ti's byte table: one step of textual inversion, as people run it and as frostline does."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from operator import truediv
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Literal, cast

import torch
from torch import Tensor, nn

from frostline.memory import Workload, estimate, measure
from frostline.memory.turns import cpu_seconds
from frostline.ops import Offload
from frostline.proof import compare_gradients
from frostline.records import MemoryReport, PeakRow, PeakTable
from frostline.regions import freeze_, trainable_parameters
from frostline.systems.ti.concept import Concept
from frostline.systems.ti.infinity.loss import bit_losses, scale_weights
from frostline.systems.ti.infinity.quantizer import MultiScaleBSQ
from frostline.systems.ti.infinity.schedule import Schedule, published_schedule
from frostline.systems.ti.infinity.sizes import TRANSFORMERS, InfinityConfig
from frostline.systems.ti.infinity.text import CompactText
from frostline.systems.ti.infinity.transformer import Infinity
from frostline.systems.ti.infinity.treatment import TREATMENTS, Treated, Treatment, treat_
from frostline.systems.ti.prompts import Prompt, Span, substitute
from frostline.training import Precision, autocast
from frostline.units import MIB

_NAME, _CARRIER, _POSITION = "<s>", "thing", 1


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The size of the step.

    Attributes:
        model: The transformer's name in the table.
        transformer: Its size.
        schedule: Grids of a picture.
        batch_size: Pictures.
        text_tokens: Of each prompt, the concept's one and the end token included.
        precision: Autocast type of the forward pass; stored bfloat16 weights need ``bf16-mixed``.
        min_offload_bytes: Smaller tensors are not offloaded.
        num_rounds: Steps of each row that are timed, in turns.
    """

    model: str = "infinity-2b"
    transformer: InfinityConfig = TRANSFORMERS["infinity-2b"]
    schedule: Schedule = field(default_factory=published_schedule)
    batch_size: int = 1
    text_tokens: int = 20
    precision: Precision = "bf16-mixed"
    min_offload_bytes: int = MIB
    num_rounds: int = 5

    def __str__(self) -> str:
        height, width = self.schedule.final_grid
        return (
            f"{self.model} ({self.transformer.depth} blocks of width {self.transformer.width}), batch"
            f" {self.batch_size}, {self.schedule.num_tokens:,} tokens up to {height} x {width}, {self.text_tokens} of"
            f" text, {self.precision}"
        )


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to run the step.

    Attributes:
        name: Its name in the table.
        frozen: Whether the concept alone trains; otherwise everything does, as in a fine-tune.
        treatment: What a frozen transformer trades for memory.
    """

    name: str
    frozen: bool = True
    treatment: Treatment = field(default_factory=Treatment)


ROWS = (
    Row(name="trainable", frozen=False),
    *(Row(name=name, treatment=treatment) for name, treatment in TREATMENTS.items()),
)
"""Everything trained; frozen; checkpointed, which is the published way; and frostline's."""


class Step:
    """A row's step on random numbers; on real or fake tensors, whichever the transformer is made of.

    Args:
        row: How.
        setting: How large.
        transformer: Is frozen and treated here.
        folder: Exists as long as the step; stored weights go there, and on the CPU so do offloaded tensors.

    Attributes:
        model: The transformer and the concept.
        concept: What trains in any case.
        parameters: All that the optimizer holds.
        treated: What was done to the transformer; None where it trains.
    """

    def __init__(self, row: Row, setting: Setting, transformer: Infinity, folder: Path) -> None:
        self._setting, device = setting, transformer.pos_start.device
        config, num = setting.transformer, setting.batch_size
        self._quantizer = MultiScaleBSQ(config.code_bits, config.patchify)
        height, width = setting.schedule.scaled(2 if config.patchify else 1).final_grid
        self.features = torch.randn(num, config.code_bits, height, width).to(device)
        lengths = (setting.text_tokens,) * num
        self.text = CompactText(torch.randn(sum(lengths), config.text_width).to(device), lengths)
        span = Span(_NAME, _POSITION, 1, "t5-output")
        self._prompts = [Prompt(_CARRIER, (0,) * setting.text_tokens, (span,))] * num
        self._weights = scale_weights(setting.schedule, "scales").to(device)
        self.concept = Concept(_NAME, torch.randn(1, config.text_width).to(device), carrier=_CARRIER)
        self.model = nn.ModuleDict({"transformer": transformer, "concept": self.concept})
        self.treated: Treated | None = None
        if row.frozen:
            freeze_(transformer)
            on_cpu = device.type == "cpu"
            self.treated = treat_(
                transformer,
                row.treatment,
                weight_file=folder / "weights.safetensors",
                folder=folder if on_cpu else None,
                min_bytes=setting.min_offload_bytes,
            )
        self.parameters = list(trainable_parameters(self.model).values())

    @property
    def host_bytes(self) -> int:
        """The most that was offloaded at once."""
        handles = self.treated.handles if self.treated else ()
        return sum(handle.store.peak_written_bytes for handle in handles if isinstance(handle, Offload))

    def backward(self) -> Tensor:
        """Bits of the features, logits of the prompts with the concept, loss and gradients; returns the loss."""
        schedule = self._setting.schedule
        codes = self._quantizer.encode(self.features, schedule)
        with autocast(self._setting.precision, self.features.device):
            text = substitute(self.text, self._prompts, [self.concept])
            logits = self.model["transformer"](text, codes.inputs, schedule)
        loss = (bit_losses(logits, codes.bits) * self._weights).sum() / self._setting.batch_size
        loss.backward()
        return loss.detach()

    def gradient(self) -> Tensor:
        """The concept's, of one step alone."""
        self.model.zero_grad(set_to_none=True)
        self.backward()
        gradient = self.concept.vectors.grad
        assert gradient is not None
        return gradient

    def workload(self) -> Workload:
        """The whole step, with AdamW and the concept's norm."""
        optimizer = torch.optim.AdamW(self.parameters, lr=1e-3, weight_decay=0.0)

        def train() -> Tensor:
            loss = self.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            self.concept.renormalise_()
            return loss

        inputs = [self.features, self.text.features, self._weights]
        return Workload(step=train, model=self.model, optimizers=(optimizer,), inputs=inputs)


def peak_table(
    setting: Setting,
    proof: Setting,
    rows: Sequence[Row] = ROWS,
    *,
    fake: bool = True,
    device: Literal["cpu", "cuda"] = "cuda",
) -> PeakTable:
    """Count bytes at one size, and compare gradients and times at one that runs on the CPU.

    Args:
        setting: Where bytes are counted.
        proof: Where the concept's gradient is compared with that of the row ``frozen``, and times are taken.
        rows: Which.
        fake: Count on fake tensors, without weights or a GPU; otherwise really run.
        device: For which device; with `fake`, ``cuda`` models its kernels, its autocast and its allocator.
    """
    counted = f"fake tensors for {device}" if fake else f"real tensors on {device}"
    with TemporaryDirectory() as name:
        plain, *found = _evidence((Row(name="frozen"), *rows), proof, Path(name))
        return PeakTable(
            system="ti",
            setting=f"{setting}; bytes on {counted}; gradients and CPU times on real tensors: {proof}",
            rows=tuple(
                _row(row, _count(row, setting, Path(name), fake, device), evidence, plain)
                for row, evidence in zip(rows, found, strict=True)
            ),
        )


@dataclass(frozen=True)
class _Evidence:
    """What real steps of a row showed: the concept's gradient, and each step's seconds."""

    gradient: Tensor
    seconds: list[float]


def _evidence(rows: Sequence[Row], setting: Setting, folder: Path) -> list[_Evidence]:
    with ExitStack() as stack:
        steps = []
        for number, row in enumerate(rows):
            steps.append(real_step(row, setting, _made(folder / f"proof-{number}")))
            if (treated := steps[-1].treated) is not None:
                stack.callback(treated.remove)
        seconds = cpu_seconds([step.gradient for step in steps], setting.num_rounds)
        return [_Evidence(step.gradient(), taken) for step, taken in zip(steps, seconds, strict=True)]


def real_step(row: Row, setting: Setting, folder: Path, device: str = "cpu") -> Step:
    """A row's step on real tensors; weights and inputs are the same for all rows.

    Args:
        row: How.
        setting: How large.
        folder: As for `Step`.
        device: Where.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = Infinity(setting.transformer)
        transformer.initialise_(gate=1.0, head=1.0)  # every block counts, as it does behind training
        return Step(row, setting, transformer.to(device), folder)


def _count(
    row: Row, setting: Setting, folder: Path, fake: bool, device: Literal["cpu", "cuda"]
) -> tuple[MemoryReport, int]:
    """The bytes of a row's step, and those on the host."""
    place = _made(folder / row.name.replace(" ", "-"))
    if not fake:
        step = real_step(row, setting, place, device)
        work = step.workload()
        report = measure(work.step, work.model, optimizers=work.optimizers, inputs=work.inputs)
        return report, step.host_bytes
    steps: list[Step] = []

    def build_workload(transformer: nn.Module) -> Workload:
        steps.append(Step(row, setting, cast(Infinity, transformer), place))
        return steps[-1].workload()

    report = estimate(lambda: Infinity(setting.transformer), build_workload, device=device)
    return report, steps[-1].host_bytes


def _row(row: Row, count: tuple[MemoryReport, int], found: _Evidence, plain: _Evidence) -> PeakRow:
    report, host_bytes = count
    proof = compare_gradients({_NAME: plain.gradient}, {_NAME: found.gradient})
    return PeakRow(
        name=row.name,
        peak_bytes=report.peak_bytes,
        resident_bytes=report.resident_bytes,
        peak_at=report.peak_at,
        proof_class=proof.proof_class,
        max_rel_grad_diff=proof.worst.max_relative if proof.worst else None,
        trains="concept" if row.frozen else "everything",
        step_seconds_ratio=median(map(truediv, found.seconds, plain.seconds)),
        allocator=report.allocator,
        host_bytes=host_bytes,
    )


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
