"""graf's byte table: one step of the generator, as people run it and as frostline does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import truediv
from statistics import median
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frostline.memory import Workload, estimate, measure
from frostline.memory.turns import cpu_seconds
from frostline.proof import Gradients, compare_gradients, gradients_of, noise_floor
from frostline.records import PeakRow, PeakTable
from frostline.regions import trainable_parameters
from frostline.systems.graf.camera import Poses
from frostline.systems.graf.config import (
    CameraConfig,
    CcsrConfig,
    FieldConfig,
    GrafSystemConfig,
    RenderingConfig,
)
from frostline.systems.graf.discriminator import Discriminator
from frostline.systems.graf.generator import Draw, Generator
from frostline.systems.graf.objective import build_discriminator, generator_loss
from frostline.systems.graf.rays import RaySampler
from frostline.systems.graf.reference import PlainGenerator, published_loss
from frostline.training import Precision

PUBLISHED = (
    "published: 8,341 MB for this step, and super-resolution under no_grad to save 0.7 MB of them, after which 9 of its"
    " 9 parameters stop learning; the true saving, with the same gradients, is 84x"
)
"""What the table is there to be compared with."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The size of the step.

    Attributes:
        batch_size: Images.
        image_size: Height and width of the rendered image.
        num_samples: On each ray.
        depth: Layers of the field.
        width: Values in each.
        channels: Of the discriminator's first convolution.
        superres_width: Channels of super-resolution.
        whole_image: Super-resolution feeds the loss, and the discriminator has a row of its own; otherwise the
            discriminator sees the rendering, and super-resolution the published consistency.
        system: A run's own configuration instead of all these sizes but the batch's.
        num_rounds: Steps of each row that are timed, in turns.
    """

    batch_size: int = 8
    image_size: int = 32
    num_samples: int = 64
    depth: int = 8
    width: int = 256
    channels: int = 128
    superres_width: int = 64
    whole_image: bool = False
    system: GrafSystemConfig | None = None
    num_rounds: int = 5


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to run the step.

    Attributes:
        name: Its name in the table.
        chunk_rays: Rays at once; 0 for all.
        recompute: How a chunk comes back in backward; with none, the field is a plain one too.
        precision: Of the field's MLP.
        published: Everything under autocast, and super-resolution under `no_grad`, re-attached.
        discriminator: The discriminator in place of a squared error to a given image; for whole images.
    """

    name: str
    chunk_rays: int = 0
    recompute: Literal["deferred", "checkpointed", "none"] = "none"
    precision: Precision = "32-true"
    published: bool = False
    discriminator: bool = False


ROWS = (
    Row(name="naive"),
    Row(name="loop-chunks", chunk_rays=1024),
    Row(name="amp", precision="bf16-mixed"),
    Row(name="published-advice", precision="bf16-mixed", published=True),
    Row(name="frostline", chunk_rays=32, recompute="deferred"),
)
WHOLE_IMAGE_ROWS = (
    *(replace(row, chunk_rays=192 if row.recompute == "deferred" else row.chunk_rays) for row in ROWS),
    Row(name="frostline-with-discriminator", chunk_rays=192, recompute="deferred", discriminator=True),
)


@dataclass(frozen=True, kw_only=True)
class GrafPeakRow(PeakRow):
    """One way to run the step.

    Attributes:
        num_still: Parameters of super-resolution that get no gradient.
        num_superres: All of its parameters.
        fp64_rel_grad_diff: Largest relative gradient difference in float64; None where half precision is part of the
            way, or nothing trains.
    """

    num_still: int
    num_superres: int
    fp64_rel_grad_diff: float | None


class Players(nn.Module):
    """Generator and discriminator.

    Args:
        setting: How large.
        row: How the generator renders.
    """

    def __init__(self, setting: Setting, row: Row) -> None:
        super().__init__()
        kind = PlainGenerator if row.recompute == "none" else Generator
        self.generator = kind(_config(setting, row), row.precision)
        self.discriminator: Discriminator | None = None
        if row.discriminator or not setting.whole_image:
            self.discriminator = build_discriminator(self.generator)


def peak_table(setting: Setting, proof: Setting, rows: Sequence[Row] = (), *, fake: bool = True) -> PeakTable:
    """Count bytes at one size, and compare gradients and times at one that runs.

    Args:
        setting: Where bytes are counted.
        proof: Where gradients and times are compared with the row ``naive``.
        rows: Which; all that belong to the setting if left out.
        fake: Count on fake tensors; otherwise really run.
    """
    rows = rows or (WHOLE_IMAGE_ROWS if setting.whole_image else ROWS)
    evidence = _Evidence(proof)
    seconds = cpu_seconds([_real_step(row, proof)[0] for row in (Row(name="naive"), *rows)], proof.num_rounds)
    counted = "fake tensors" if fake else "real tensors"
    counts, proofs = (_sizes(_config(one, Row(name="naive"))) for one in (setting, proof))
    what = "whole image with super-resolution" if setting.whole_image else "patch"
    if setting.system is not None:
        what = "image as the run renders it"
    return PeakTable(
        system="graf",
        setting=f"generator step, batch {setting.batch_size}, {what}: {counts}, RMSprop; bytes on {counted};"
        f" gradients and CPU times at batch {proof.batch_size}, {proofs}. {PUBLISHED}",
        rows=tuple(
            _row(row, setting, evidence, median(map(truediv, taken, seconds[0])), fake)
            for row, taken in zip(rows, seconds[1:], strict=True)
        ),
    )


class _Evidence:
    """Gradients of the plain step at the proof's size, with and without a discriminator."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._plain: dict[tuple[bool, torch.dtype], Gradients] = {}

    def gradients(self, row: Row, dtype: torch.dtype) -> Gradients:
        step, players = _real_step(row, self.setting, dtype)
        step()
        return gradients_of(players.generator)

    def plain(self, row: Row, dtype: torch.dtype) -> Gradients:
        key = (row.discriminator, dtype)
        if key not in self._plain:
            self._plain[key] = self.gradients(Row(name="naive", discriminator=row.discriminator), dtype)
        return self._plain[key]


def _row(row: Row, setting: Setting, evidence: _Evidence, seconds_ratio: float, fake: bool) -> GrafPeakRow:
    if fake:
        report = estimate(
            lambda: Players(setting, row), lambda players: _workload(row, setting, cast(Players, players))
        )
    else:
        work = _workload(row, setting, Players(setting, row))
        report = measure(work.step, work.model, optimizers=work.optimizers, inputs=work.inputs)
    plain, truth = evidence.plain(row, torch.float32), evidence.plain(row, torch.float64)
    found = evidence.gradients(row, torch.float32)
    proof = compare_gradients(plain, found, floor=noise_floor(plain, truth))
    still = [name for name, gradient in found.items() if gradient is None or not gradient.any()]
    superres = [name for name in found if name.startswith("superres.")]
    num_still = len(set(still) & set(superres))
    trains = "nothing" if len(still) == len(found) else "everything"
    if still and trains != "nothing":
        trains = f"{num_still} of {len(superres)} of superres stand still"
    double = None
    if row.precision == "32-true" and trains != "nothing":
        worst = compare_gradients(truth, evidence.gradients(row, torch.float64)).worst
        double = worst.max_relative if worst else None
    return GrafPeakRow(
        name=row.name,
        peak_bytes=report.peak_bytes,
        resident_bytes=report.resident_bytes,
        peak_at=report.peak_at,
        proof_class=proof.proof_class if trains != "nothing" else "none",
        max_rel_grad_diff=proof.worst.max_relative if proof.worst and trains != "nothing" else None,
        trains=trains,
        step_seconds_ratio=seconds_ratio,
        num_still=num_still,
        num_superres=len(superres),
        fp64_rel_grad_diff=double,
    )


def _sizes(config: GrafSystemConfig) -> str:
    field = config.field
    side = RaySampler(config.rays, config.camera.image_size).size
    samples = config.rendering.num_samples
    return f"{side} x {side} rays, {samples} samples on each, {field.depth} x {field.width} field"


def _config(setting: Setting, row: Row) -> GrafSystemConfig:
    if setting.system is not None:
        rendering = replace(setting.system.rendering, chunk_rays=row.chunk_rays, recompute=row.recompute)
        return replace(setting.system, rendering=rendering)
    plain = GrafSystemConfig()
    loss: Literal["adversarial", "consistency"] = "adversarial" if setting.whole_image else "consistency"
    return replace(
        plain,
        camera=CameraConfig(image_size=setting.image_size),
        field=FieldConfig(depth=setting.depth, width=setting.width, skip_layer=setting.depth // 2),
        rendering=RenderingConfig(num_samples=setting.num_samples, chunk_rays=row.chunk_rays, recompute=row.recompute),
        ccsr=CcsrConfig(loss=loss, width=setting.superres_width),
        discriminator=replace(plain.discriminator, channels=setting.channels),
    )


def _workload(row: Row, setting: Setting, players: Players) -> Workload:
    """A whole step of the generator with its optimizer, beside the discriminator's resident state."""
    optimizers = [torch.optim.RMSprop(players.generator.parameters(), lr=5e-4)]
    if players.discriminator is not None:
        optimizers.append(torch.optim.RMSprop(players.discriminator.parameters(), lr=1e-4))
        for parameter in players.discriminator.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizers[1].step()  # its state is there, since the discriminator steps before
        optimizers[1].zero_grad(set_to_none=True)
    draw, target = _inputs(setting, players.generator)
    loss = _loss(row, players, draw, target)

    def step() -> Tensor:
        value = loss()
        value.backward()
        optimizers[0].step()
        optimizers[0].zero_grad(set_to_none=True)
        return value.detach()

    inputs = [draw.latents, draw.classes, draw.poses.azimuth, draw.poses.elevation, draw.seeds]
    inputs += [draw.patch.scale, draw.patch.centre, target]
    return Workload(step=step, model=players, optimizers=tuple(optimizers), inputs=inputs)


def _loss(row: Row, players: Players, draw: Draw, target: Tensor) -> Callable[[], Tensor]:
    generator, discriminator = players.generator, players.discriminator

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=row.published):
            if discriminator is None:
                return _squared_error(generator, draw, target, cut=row.published)
            if row.published:
                return published_loss(generator, discriminator, draw).total
            return generator_loss(generator, discriminator, draw, step=0).total

    return loss


def _squared_error(generator: Generator, draw: Draw, target: Tensor, *, cut: bool) -> Tensor:
    """Of the enlarged whole image; with the published cut, or without."""
    image = generator(draw).image
    with torch.set_grad_enabled(not cut):
        enlarged = generator.super_resolve(image, draw.poses)
    if cut:
        enlarged.requires_grad_(True)
    return F.mse_loss(enlarged.to(target.dtype), target)


def _inputs(setting: Setting, generator: Generator) -> tuple[Draw, Tensor]:
    num = setting.batch_size
    numbers = torch.arange(num, dtype=torch.float32)
    poses = Poses.from_degrees(360 / num * numbers + 5, 10 + 40 / num * numbers)
    draw = generator.draw(torch.arange(num) % generator.config.field.num_classes, poses)
    side = generator.config.ccsr.scale * setting.image_size if setting.whole_image else 1
    return draw, torch.rand(num, 3, side, side, dtype=draw.latents.dtype)


def _real_step(row: Row, setting: Setting, dtype: torch.dtype = torch.float32) -> tuple[Callable[[], object], Players]:
    """Forward and backward on real tensors; weights and inputs are the same for all rows and types."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        players = Players(setting, row)
        draw, target = _inputs(setting, players.generator)
    players.to(dtype)
    draw = replace(draw, latents=draw.latents.to(dtype))
    loss = _loss(row, players, draw, target.to(dtype))
    trained = list(trainable_parameters(players.generator).values())

    def step() -> None:
        for parameter in trained:
            parameter.grad = None
        loss().backward()

    return step, players
