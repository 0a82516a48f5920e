"""The verbs semcom answers to: all that the workflow knows of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from frostline.errors import ConfigError
from frostline.memory import Workload
from frostline.records import EvaluationReport, PeakTable
from frostline.systems.semcom import peak_table as tables
from frostline.systems.semcom import study
from frostline.systems.semcom.backbone import shape_image_size
from frostline.systems.semcom.config import SemcomConfig
from frostline.systems.semcom.peak_table import ROWS, Row, Setting, build_florence, build_workload
from frostline.systems.semcom.system import SemcomSystem
from frostline.training import Group

TRAINABLES = "codec.safetensors"
_ANSWER_TOKENS = 32


def build(config: SemcomConfig, group: Group, directory: Path | None) -> SemcomSystem:
    """The system a configuration describes."""
    return SemcomSystem(config, group, directory=directory)


def blueprint(
    config: SemcomConfig,
) -> tuple[Callable[[], nn.Module], Callable[[Any], Workload]]:
    """How to build the frozen model, and a training step round it, from shapes alone.

    Raises:
        ConfigError: Nothing trains, or the model's shapes are not known.
    """
    if config.system.codec == "none":
        raise ConfigError("the system has 0 trainable parameters: there is no training step to measure")
    setting = _setting(config, _ANSWER_TOKENS)
    row = Row(name="frostline", memory=config.memory)
    not_seen = (f"answers longer than {_ANSWER_TOKENS} tokens",)

    def build_step(florence: Any) -> Workload:
        return replace(build_workload(row, setting, florence), not_seen=not_seen)

    return partial(build_florence, row, setting), build_step


def evaluate(system: SemcomSystem, baselines: bool, note: Callable[[str], None]) -> EvaluationReport:
    """Accuracy over SNR."""
    return study.evaluate(system, baselines=baselines, note=note)


def peak_table(config: SemcomConfig) -> PeakTable:
    """The run's own step beside the plain ones, all really run at the run's size."""
    system = SemcomSystem(replace(config, memory=replace(config.memory, feature_cache="none")), Group.open("cpu"))
    first = next(system.batches().iterate(0))[0]
    setting = _setting(config, first.labels.shape[1])
    plain = [row for row in ROWS if row.name in ("unfrozen", "frozen", "published-advice")]
    own = [
        Row(name="frostline, no cache", memory=replace(config.memory, feature_cache="none")),
        Row(name="frostline, this run", memory=config.memory),
    ]
    return tables.peak_table(setting, setting, [*plain, *own], fake=False)


def _setting(config: SemcomConfig, target_tokens: int) -> Setting:
    training = config.training
    return Setting(
        system=config.system,
        batch_size=max(1, training.batch_size // training.gradient_accumulation_steps),
        image_size=shape_image_size(config.system.model),
        target_tokens=target_tokens,
        precision=training.precision,
    )
