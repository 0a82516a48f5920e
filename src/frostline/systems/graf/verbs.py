"""The verbs graf answers to: all that the workflow knows of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from frostline.config import MemoryConfig
from frostline.memory import Workload
from frostline.records import EvaluationReport, PeakRow, PeakTable, Plan, ProofReport
from frostline.systems.graf import peak_table as tables
from frostline.systems.graf.batches import Batch
from frostline.systems.graf.config import GrafConfig
from frostline.systems.graf.evaluation import evaluation_report
from frostline.systems.graf.model import GrafModel
from frostline.systems.graf.planning import chunk_rays_of, plan_chunks, prove_chunks
from frostline.systems.graf.review import TRAINABLES
from frostline.systems.graf.system import GrafSystem, check_memory, graf_phases, training_step
from frostline.systems.graf.turntable import write_pictures, write_views
from frostline.training import Group

__all__ = ["TRAINABLES", "blueprint", "build", "evaluate", "generate", "peak_table", "plan", "prove"]

_PROOF_BATCH = 2


def build(config: GrafConfig, group: Group, directory: Path | None) -> GrafSystem:
    """The system a configuration describes; a budget decides how many rays go through the field at once."""
    system = GrafSystem(config, group, directory=directory)
    if config.memory.budget:
        system.plan = plan(config)
        system.model.set_chunk_rays_(chunk_rays_of(system.plan))
    return system


def blueprint(config: GrafConfig) -> tuple[Callable[[], nn.Module], Callable[[Any], Workload]]:
    """How to build both players, and a step of both, from shapes alone."""
    build_model, build_step = _blueprint(config)
    if not config.memory.budget:
        return build_model, build_step
    chunk_rays = chunk_rays_of(plan(config))

    def build_treated() -> GrafModel:
        model = build_model()
        model.set_chunk_rays_(chunk_rays)
        return model

    return build_treated, build_step


def plan(config: GrafConfig) -> Plan:
    """The most rays at once that fit `memory.budget`.

    Raises:
        BudgetError: None fits.
    """
    return plan_chunks(*_blueprint(config), config)


def prove(config: GrafConfig, plan: Plan | None, group: Group) -> tuple[ProofReport, Plan]:
    """Compare both players' gradients under a plan, for a budget, or as configured, with those of all rays at once.

    Raises:
        BudgetError: None fits.
        PlanError: The plan is for another model.
    """
    if plan is not None:
        config = replace(config, memory=MemoryConfig())  # the plan says it all
    system = GrafSystem(config, group)
    if plan is None:
        plan = plan_chunks(*_blueprint(config), config)
    batches = system.batches().iterate(0)
    try:
        batch = next(batches)[0].to(group.device)
    finally:
        batches.close()
    return prove_chunks(system.model, config, batch, chunk_rays_of(plan)), plan


def evaluate(system: GrafSystem, baselines: bool, note: Callable[[str], None]) -> EvaluationReport:
    """KID, FID, class and azimuth of generated images, or PSNR of reconstructed ones; and a picture to look at."""
    report = evaluation_report(system, system.directory)
    if system.directory is not None:
        path = write_pictures(system.model.average, system.config, system.directory)
        note(f"every class from all round: {path}")
    return report


def generate(system: GrafSystem, directory: Path, note: Callable[[str], None]) -> list[Path]:
    """Views and turntables of every class."""
    samples = system.config.system.samples
    note(f"rendering {samples.num_views} views and {samples.num_frames} frames of every class")
    return write_views(system.model.average, system.config, directory)


def peak_table(config: GrafConfig) -> PeakTable:
    """The run's own step beside the published ones, all really run at the run's size."""
    system, training = config.system, config.training
    setting = tables.Setting(
        batch_size=max(1, training.batch_size // training.gradient_accumulation_steps),
        system=system,
        image_size=system.camera.image_size,
    )
    chunk_rays, recompute = system.rendering.chunk_rays, system.rendering.recompute
    if config.memory.budget:
        chunk_rays, recompute = chunk_rays_of(plan(config)), "deferred" if recompute == "none" else recompute
    rows = [row for row in tables.ROWS if row.name != "frostline" and (system.ccsr.enabled or not row.published)]
    rows.append(tables.Row(name="frostline", chunk_rays=chunk_rays, recompute=recompute))
    rows.append(replace(rows[-1], name="frostline, this run", precision=training.precision))
    if training.precision == "32-true":
        del rows[-2]
    proof = replace(setting, batch_size=min(setting.batch_size, _PROOF_BATCH))
    table = tables.peak_table(setting, proof, rows, fake=False)
    names = [field.name for field in fields(PeakRow)]
    return replace(table, rows=tuple(PeakRow(**{name: getattr(row, name) for name in names}) for row in table.rows))


def _blueprint(config: GrafConfig) -> tuple[Callable[[], GrafModel], Callable[[Any], Workload]]:
    check_memory(config.memory)
    return partial(GrafModel, config.system, config.training.precision), partial(_random_step, config)


def _random_step(config: GrafConfig, model: GrafModel) -> Workload:
    training, generator = config.training, model.generator
    num = max(1, training.batch_size // training.gradient_accumulation_steps)
    device = generator.field.density.weight.device
    batch = Batch(
        torch.zeros(num, 3, generator.whole_size, generator.whole_size, dtype=torch.uint8, device=device),
        torch.randint(config.system.field.num_classes, (num,), device=device),
        360 * torch.rand(num, device=device),
        90 * torch.rand(num, device=device),
        torch.randn(num, 2, config.system.field.latent_size, device=device),
        torch.rand(num, 2, 3, device=device),
        torch.randint(2**62, (num, 2), device=device),
    )
    return training_step(model.train(), graf_phases(model, config, device), batch)
