"""linet's byte table: one training step with modality dropout, as published and as frostline runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from operator import truediv
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from frostline.memory import measure
from frostline.memory.turns import cpu_seconds
from frostline.proof import Gradients, compare_gradients, gradients_of, noise_floor
from frostline.records import PeakRow, PeakTable
from frostline.systems.linet.availability import Sampler, draw_availability
from frostline.systems.linet.network import Depth, LINet
from frostline.systems.linet.reference import Masking, plain_logits
from frostline.systems.linet.treatment import Treatment

_NUM_CLASSES = 19


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The size of the step.

    Attributes:
        depth: Of the network.
        stream_channels: Of the network's streams.
        width_multiplier: Of the network's channels.
        batch_size: Samples.
        image_size: Height and width in pixels.
        rate: Of modality dropout.
        sampler: Of modality dropout.
        num_rounds: Steps of each row that are timed, in turns.
    """

    depth: Depth = 18
    stream_channels: tuple[int, ...] = (3, 1)
    width_multiplier: float = 1.0
    batch_size: int = 32
    image_size: int = 224
    rate: float = 0.2
    sampler: Sampler = "one_of_n"
    num_rounds: int = 5


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to run the step.

    Attributes:
        name: Its name in the table.
        masking: A published way; None runs frostline's network.
        dropout: Whether streams are taken away.
        treatment: What frostline's network trades for memory.
        rate: Of modality dropout, instead of the setting's; such a row is not timed.
    """

    name: str
    masking: Masking | None = None
    dropout: bool = True
    treatment: Treatment = field(default_factory=Treatment)
    rate: float | None = None


_FROSTLINE = Treatment(recompute="outputs", stem_slices=4)
ROWS = (
    Row(name="no-dropout", masking="before", dropout=False),
    Row(name="published-before", masking="before"),
    Row(name="published-after", masking="after"),
    Row(name="compact"),
    Row(name="frostline", treatment=_FROSTLINE),
    Row(name="frostline-smallest", treatment=Treatment(recompute="blocks", stem_slices=4)),
    *(Row(name=f"frostline-rate-{rate}", treatment=_FROSTLINE, rate=rate / 100) for rate in (0, 10, 50, 100)),
)


@dataclass(frozen=True, kw_only=True)
class LinetPeakRow(PeakRow):
    """One way to run the step.

    Attributes:
        conv_flops: Floating-point operations of its convolutions, forward and backward.
        cpu_seconds_ratio: CPU time of its step over the time without dropout, the median over rounds in turns; None
            where it is not timed.
        buffers_equal: Whether it leaves all running statistics bit by bit as the plain step of the same samples
            does, in float64.
    """

    conv_flops: int
    cpu_seconds_ratio: float | None
    buffers_equal: bool


@dataclass(frozen=True)
class _Work:
    """A row's step on one model; samples and weights are the same for all rows."""

    row: Row
    model: LINet
    streams: tuple[Tensor, ...]
    labels: Tensor
    availability: Tensor | None

    def __call__(self) -> Tensor:
        self.model.treatment = self.row.treatment
        if self.row.masking is None:
            logits = self.model(self.streams, self.availability)
        else:
            logits = plain_logits(self.model, self.streams, self.availability, masking=self.row.masking)
        loss = F.cross_entropy(logits, self.labels)
        loss.backward()
        return loss


def peak_table(setting: Setting, proof: Setting, rows: Sequence[Row] = ROWS) -> PeakTable:
    """Measure every row on the CPU: nothing is predicted.

    Args:
        setting: Where bytes, operations and times are measured.
        proof: Where gradients and statistics are compared with the plain step of the same samples, in float64.
        rows: Which.
    """
    plain_row = next(row for row in ROWS if row.name == "no-dropout")
    plain, availability = _work(plain_row, setting), _draw(setting)
    works = [_work(row, setting, model=plain.model) for row in rows]
    timed = [plain, *(work for work in works if work.row != plain_row and work.row.rate is None)]
    seconds = dict(zip((work.row.name for work in timed), cpu_seconds(timed, setting.num_rounds), strict=True))
    ratios = {name: median(map(truediv, found, seconds[plain_row.name])) for name, found in seconds.items()}
    missing = [int(count) for count in (~availability).sum(0)]
    return PeakTable(
        system="linet",
        setting=f"li_resnet{setting.depth}, {len(setting.stream_channels)} streams, batch {setting.batch_size},"
        f" {setting.image_size} px, {setting.sampler} at {setting.rate:g}, missing {missing}; gradients and"
        f" statistics in float64 at batch {proof.batch_size}, {proof.image_size} px",
        rows=tuple(_measure(work, ratios.get(work.row.name), proof) for work in works),
    )


def _measure(work: _Work, seconds_ratio: float | None, proof: Setting) -> LinetPeakRow:
    inputs = (work.streams, work.labels, work.availability)
    report = measure(work, work.model, inputs=inputs, warmup_steps=0)  # gradients are there since the rounds
    with FlopCounterMode(display=False) as counter:
        work()
    gradients, expected, floor, buffers_equal = _compare(work.row, proof)
    verdict = compare_gradients(expected, gradients, floor=floor)
    return LinetPeakRow(
        name=work.row.name,
        peak_bytes=report.peak_bytes,
        resident_bytes=report.resident_bytes,
        peak_at=report.peak_at,
        proof_class=verdict.proof_class,
        max_rel_grad_diff=verdict.worst.max_relative if verdict.worst else None,
        trains="everything",
        step_seconds_ratio=seconds_ratio,
        conv_flops=sum(num for kind, num in counter.get_flop_counts()["Global"].items() if "convolution" in str(kind)),
        cpu_seconds_ratio=seconds_ratio,
        buffers_equal=buffers_equal,
    )


def _compare(row: Row, proof: Setting) -> tuple[Gradients, Gradients, float, bool]:
    """A row's float64 gradients, the plain step's, the latter's own rounding, and whether buffers agree."""
    plain_row = Row(name="plain", masking="before", dropout=row.dropout, rate=row.rate)
    plain = _work(plain_row, proof, dtype=torch.float64)
    work = _work(row, proof, dtype=torch.float64)
    backwards = _reversed(_work(plain_row, proof, dtype=torch.float64))
    for step in (plain, work, backwards):
        step()
    expected = gradients_of(plain.model)
    pairs = zip(plain.model.buffers(), work.model.buffers(), strict=True)
    equal = all(torch.equal(a, b) for a, b in pairs)
    return gradients_of(work.model), expected, noise_floor(expected, gradients_of(backwards.model)), equal


def _work(
    row: Row,
    setting: Setting,
    *,
    model: LINet | None = None,
    dtype: torch.dtype = torch.float32,
) -> _Work:
    torch.manual_seed(0)
    if model is None:
        width = setting.width_multiplier
        model = LINet(_NUM_CLASSES, setting.stream_channels, depth=setting.depth, width_multiplier=width).to(dtype)
    generator = torch.Generator().manual_seed(1)
    num, size = setting.batch_size, setting.image_size
    streams = tuple(
        torch.randn(num, channels, size, size, dtype=dtype, generator=generator).contiguous(
            memory_format=torch.channels_last
        )
        for channels in setting.stream_channels
    )
    labels = torch.randint(_NUM_CLASSES, (num,), generator=generator)
    availability = None
    if row.dropout:
        availability = _draw(setting if row.rate is None else replace(setting, rate=row.rate))
    return _Work(row, model, streams, labels, availability)


def _reversed(work: _Work) -> _Work:
    """The same samples in reverse order: every sum over them is taken in another order."""
    return replace(
        work,
        streams=tuple(stream.flip(0).contiguous(memory_format=torch.channels_last) for stream in work.streams),
        labels=work.labels.flip(0),
        availability=None if work.availability is None else work.availability.flip(0),
    )


def _draw(setting: Setting) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    num_streams = len(setting.stream_channels)
    return draw_availability(setting.sampler, setting.batch_size, num_streams, setting.rate, generator=generator)
