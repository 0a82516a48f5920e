"""The verbs linet answers to: all that the workflow knows of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from frostline.memory import Workload
from frostline.records import EvaluationReport, PeakRow, PeakTable, Plan, ProofReport
from frostline.systems.linet import peak_table as tables
from frostline.systems.linet.batches import Batch
from frostline.systems.linet.budget import choose_treatment, price_treatment
from frostline.systems.linet.build import build_network, build_treatment
from frostline.systems.linet.config import LinetConfig
from frostline.systems.linet.data import NUM_CLASSES
from frostline.systems.linet.evaluation import evaluation_report
from frostline.systems.linet.network import LINet
from frostline.systems.linet.peak_table import Row, Setting
from frostline.systems.linet.planning import plan_of, prove_plan
from frostline.systems.linet.sources import CHANNELS, STREAMS
from frostline.systems.linet.system import LinetSystem, check_streams, network_loss, network_phase, training_step
from frostline.training import Group

TRAINABLES = "network.safetensors"
_NUM_ROUNDS = 3
_PROOF_SIZE, _PROOF_BATCH = 64, 8


def build(config: LinetConfig, group: Group, directory: Path | None) -> LinetSystem:
    """The system a configuration describes; a budget decides what is recomputed, instead of the configuration."""
    system = LinetSystem(config, group)
    if config.memory.budget:
        system.choose(*_plain_blueprint(config, len(system.source.classes)))
        assert system.choice is not None
        system.plan = plan_of(system.choice, system.model, config.memory.budget)
    return system


def blueprint(config: LinetConfig) -> tuple[Callable[[], nn.Module], Callable[[Any], Workload]]:
    """How to build the network, and a training step on samples that have every stream, from shapes alone.

    Raises:
        ConfigError: The network's streams are not those of the data.
    """
    check_streams(config)
    build_model, build_step = _plain_blueprint(config, NUM_CLASSES[config.data.kind])
    if not config.memory.budget:
        return build_model, build_step
    treatment = choose_treatment(build_model, build_step, config.memory.budget).treatment

    def build_treated() -> LINet:
        model = build_model()
        model.treatment = treatment
        return model

    return build_treated, build_step


def plan(config: LinetConfig) -> Plan:
    """The cheapest treatment that fits `memory.budget`.

    Raises:
        BudgetError: None fits.
        ConfigError: The network's streams are not those of the data.
    """
    check_streams(config)
    build_model, build_step = _plain_blueprint(config, NUM_CLASSES[config.data.kind])
    return plan_of(choose_treatment(build_model, build_step, config.memory.budget), build_model(), config.memory.budget)


def prove(config: LinetConfig, plan: Plan | None, group: Group) -> tuple[ProofReport, Plan]:
    """Compare the training step under a plan, for a budget, or as configured, with the one that keeps everything.

    Raises:
        BudgetError: No treatment fits.
        PlanError: The plan is for another network.
    """
    system = LinetSystem(config, group)
    budget = config.memory.budget
    build_model, build_step = _plain_blueprint(config, len(system.source.classes))
    if plan is None:
        if budget:
            choice = choose_treatment(build_model, build_step, budget)
        else:
            choice = price_treatment(build_model, build_step, build_treatment(config.system))
        plan = plan_of(choice, system.model, budget)
    return prove_plan(system, plan), plan


def evaluate(system: LinetSystem, baselines: bool, note: Callable[[str], None]) -> EvaluationReport:
    """Accuracy and calibration with every combination of streams, and over missing rates."""
    note(f"testing {2 ** len(STREAMS) - 1} combinations of streams")
    data = system.config.data
    place = "unseen rooms" if data.kind == "scenes" else f"test samples of {data.kind}"
    facts = {"num_test_samples": float(system.num_test), "num_classes": float(len(system.source.classes))}
    if data.kind == "scenes" and data.shading == 0:
        facts |= {"ceiling, all streams": 1.0, "ceiling, one stream": 1 / 3}
    return evaluation_report(
        system.model,
        system.test_batches(),
        names=STREAMS,
        title=f"li_resnet{system.config.system.depth} on {system.num_test:,} {place}, streams missing",
        facts=facts,
    )


def peak_table(config: LinetConfig) -> PeakTable:
    """The run's own step beside the published ones, all really run at the run's size."""
    system, training = config.system, config.training
    setting = Setting(
        depth=system.depth,
        stream_channels=CHANNELS,
        width_multiplier=system.width_multiplier,
        batch_size=max(1, training.batch_size // training.gradient_accumulation_steps),
        image_size=config.data.image_size,
        rate=0.0 if system.modality_dropout == "none" else system.modality_dropout_rate,
        sampler="one_of_n" if system.modality_dropout == "none" else system.modality_dropout,
        num_rounds=_NUM_ROUNDS,
    )
    proof = replace(
        setting,
        batch_size=min(setting.batch_size, _PROOF_BATCH),
        image_size=min(setting.image_size, _PROOF_SIZE),
    )
    own = Row(name="frostline, this run", treatment=build_treatment(system))
    published = [row for row in tables.ROWS if row.masking is not None]
    table = tables.peak_table(setting, proof, [*published, next(r for r in tables.ROWS if r.name == "compact"), own])
    names = [field.name for field in fields(PeakRow)]
    return replace(table, rows=tuple(PeakRow(**{name: getattr(row, name) for name in names}) for row in table.rows))


def _plain_blueprint(config: LinetConfig, num_classes: int) -> tuple[Callable[[], LINet], Callable[[LINet], Workload]]:
    num_classes = config.system.num_classes or num_classes
    return partial(build_network, config.system, num_classes), partial(_random_step, config, num_classes)


def _random_step(config: LinetConfig, num_classes: int, model: LINet) -> Workload:
    training, size = config.training, config.data.image_size
    num = max(1, training.batch_size // training.gradient_accumulation_steps)
    device = model.fc.weight.device
    phase = network_phase(model, partial(network_loss, model), training, device)
    streams = tuple(torch.zeros(num, channels, size, size, dtype=torch.uint8, device=device) for channels in CHANNELS)
    batch = Batch(streams, torch.randint(num_classes, (num,), device=device))
    not_seen = ("that modality dropout takes streams away: every sample has every stream",)
    return replace(training_step(model.train(), phase, batch), not_seen=not_seen)
