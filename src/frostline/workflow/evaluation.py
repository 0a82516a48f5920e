"""Evaluate a system, with the weights of a run or without any."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from frostline.config import RunConfig
from frostline.errors import ConfigError
from frostline.records import EvaluationReport
from frostline.regions import load_trainable_state_
from frostline.training import CheckpointStore
from frostline.workflow.session import SILENT, Device, RunObserver, TrainableSystem, open_group, verbs_of


def evaluate(
    config: RunConfig,
    *,
    checkpoint: Path | str | None = None,
    observer: RunObserver = SILENT,
    baselines: bool = False,
    device: Device = "auto",
) -> EvaluationReport:
    """Score a system.

    Args:
        config: Of any system; a run's own lies in its directory.
        checkpoint: A run's directory; needed where something trains.
        observer: Told how it goes.
        baselines: Also train the alternatives that need training.
        device: ``auto`` takes a GPU where there is one.

    Raises:
        CheckpointError: There is no checkpoint, or it is of another system.
        ConfigError: A value cannot be used.
        DataError: The data cannot be used.
        DeviceError: The device is not there.
    """
    verbs = verbs_of(config)
    with trained(config, checkpoint=checkpoint, observer=observer, device=device) as system:
        if baselines:
            system.fill_cache(observer.filling)
        return verbs.evaluate(system, baselines, observer.note)


@contextmanager
def trained(
    config: RunConfig, *, checkpoint: Path | str | None, observer: RunObserver, device: Device
) -> Iterator[TrainableSystem]:
    """A system with the weights of a run, in eval mode, on one process.

    Args:
        config: Of any system; a run's own lies in its directory.
        checkpoint: A run's directory; needed where something trains.
        observer: Told what the system says of itself.
        device: ``auto`` takes a GPU where there is one.

    Raises:
        CheckpointError: There is no checkpoint, or it is of another system.
        ConfigError: A value cannot be used.
        DataError: The data cannot be used.
        DeviceError: The device is not there.
    """
    verbs = verbs_of(config)
    group = open_group(device)
    try:
        if group.world_size > 1:
            raise ConfigError("a trained system is looked at on one process", do="leave out torchrun")
        state = None
        if checkpoint is not None:
            state = CheckpointStore(Path(checkpoint), verbs.TRAINABLES).load_trainables()
        system = verbs.build(config, group, Path(checkpoint) if checkpoint is not None else None)
        for line in system.notes():
            observer.note(line)
        if system.phases:
            if state is None:
                raise ConfigError(
                    f"{config.SYSTEM} is trained, and no run of it was named",
                    do="give --checkpoint RUN, the directory of a run",
                )
            load_trainable_state_(system.model, state)
        system.model.eval()
        yield system
    finally:
        group.close()
