"""The verbs ti answers to: all that the workflow knows of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from frostline.memory import Workload
from frostline.records import EvaluationReport, PeakTable, Plan, ProofReport
from frostline.systems.ti import peak_table as tables
from frostline.systems.ti.config import GenerateOptions, TiConfig, TiMemoryConfig
from frostline.systems.ti.evaluation import evaluation_report
from frostline.systems.ti.generating import CONCEPT_FILE, generate_pictures
from frostline.systems.ti.image_model import shapes_of
from frostline.systems.ti.infinity.treatment import Treatment
from frostline.systems.ti.planning import plan_treatment, prove_treatment, treatment_of
from frostline.systems.ti.shapes import Blueprint
from frostline.systems.ti.system import TiSystem, configured_treatment
from frostline.training import Group

TRAINABLES = CONCEPT_FILE
_PROOF_BATCH = 4
_TEXT_TOKENS = 6  # of a caption of things


def build(config: TiConfig, group: Group, directory: Path | None) -> TiSystem:
    """The system a configuration describes; a budget decides what is traded for memory."""
    own = plan(config) if config.memory.budget else None
    system = TiSystem(config, group, directory=directory, treatment=None if own is None else treatment_of(own))
    system.plan = own
    return system


def blueprint(config: TiConfig) -> tuple[Callable[[], nn.Module], Callable[[Any], Workload]]:
    """How to build the frozen models, and a training step round them, from shapes alone."""
    treatment = treatment_of(plan(config)) if config.memory.budget else configured_treatment(config.memory)
    shapes = Blueprint(config)
    return shapes.build_model, partial(shapes.build_step, treatment=treatment)


def plan(config: TiConfig) -> Plan:
    """The treatment with the least work that fits `memory.budget`.

    Raises:
        BudgetError: None fits.
    """
    return _plan(config)


def _plan(config: TiConfig) -> Plan:
    shapes = Blueprint(config)
    return plan_treatment(
        shapes.build_model,
        shapes.build_step,
        budget=config.memory.budget,
        precision=config.training.precision,
        configured=configured_treatment(config.memory),
    )


def prove(config: TiConfig, plan: Plan | None, group: Group) -> tuple[ProofReport, Plan]:
    """Compare the concepts' gradients under a plan, for a budget, or as configured, with those of the plain step.

    Raises:
        BudgetError: None fits.
        PlanError: The plan is for another model.
    """
    plan = plan or _plan(config)
    plain = replace(config, memory=TiMemoryConfig())
    system = TiSystem(plain, group, treatment=Treatment())
    work = system.workload()
    system.release_upstream_()
    return prove_treatment(work, treatment_of(plan)), plan


def evaluate(system: TiSystem, baselines: bool, note: Callable[[str], None]) -> EvaluationReport:
    """What the concepts draw, before and after; nothing is compared that needs training."""
    return evaluation_report(system, note)


def generate_from(
    config: TiConfig,
    options: GenerateOptions,
    group: Group,
    *,
    checkpoint: Path | None,
    out: Path | None,
    note: Callable[[str], None],
) -> list[Path]:
    """Pictures of prompts."""
    return generate_pictures(config, options, group.device, checkpoint=checkpoint, out=out, note=note)


def peak_table(config: TiConfig) -> PeakTable:
    """The run's own step beside the published ones, all really run at the run's size."""
    training = config.training
    transformer, schedule = shapes_of(config.system)
    setting = tables.Setting(
        model=Path(config.system.model).name,
        transformer=transformer,
        schedule=schedule,
        batch_size=max(1, training.batch_size // training.gradient_accumulation_steps),
        text_tokens=_TEXT_TOKENS,
        precision=training.precision,
    )
    half = training.precision == "bf16-mixed"
    rows = [
        *(
            row if half else replace(row, treatment=replace(row.treatment, bfloat16_weights=False))
            for row in tables.ROWS
            if half or row.name != "bf16-weights"  # what autocast does not cast stays as it is
        ),
        tables.Row(name="frostline, this run", treatment=configured_treatment(config.memory)),
    ]
    proof = replace(setting, batch_size=min(setting.batch_size, _PROOF_BATCH))
    return tables.peak_table(setting, proof, rows, fake=False, device="cpu")
