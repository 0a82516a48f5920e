"""Let a trained system make something to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from frostline.config import RunConfig
from frostline.errors import ConfigError
from frostline.workflow.evaluation import trained
from frostline.workflow.session import (
    SILENT,
    Device,
    Generative,
    OwnGeneration,
    RunObserver,
    make_directory,
    open_group,
    verbs_of,
)


def generate(
    config: RunConfig,
    *,
    checkpoint: Path | str | None = None,
    out: Path | str | None = None,
    options: Any = None,
    observer: RunObserver = SILENT,
    device: Device = "auto",
) -> list[Path]:
    """Files that a trained system makes.

    Args:
        config: Of a system that makes pictures; a run's own lies in its directory.
        checkpoint: A run's directory; a system with options of its own may do without.
        out: The directory the files go to, or a file where the system makes one; `checkpoint` by default.
        options: What the system is told beside its configuration, where it is told anything.
        observer: Told how it goes.
        device: ``auto`` takes a GPU where there is one.

    Returns:
        Their paths.

    Raises:
        CheckpointError: There is no checkpoint, or it is of another system.
        ConfigError: A value cannot be used, or the system makes no pictures.
        DataError: The data cannot be used.
        DeviceError: The device is not there.
        MissingExtraError: A package that writes the files is not installed.
    """
    verbs = verbs_of(config)
    if isinstance(verbs, OwnGeneration):
        group = open_group(device)
        try:
            return verbs.generate_from(
                config,
                options,
                group,
                checkpoint=None if checkpoint is None else Path(checkpoint),
                out=None if out is None else Path(out),
                note=observer.note,
            )
        finally:
            group.close()
    if not isinstance(verbs, Generative):
        raise ConfigError(f"{config.SYSTEM} makes nothing to look at", do="evaluate it instead")
    if checkpoint is None:
        raise ConfigError("no run was named", do="give the directory of a run")
    directory = Path(checkpoint if out is None else out)
    make_directory(directory)
    with trained(config, checkpoint=checkpoint, observer=observer, device=device) as system:
        return verbs.generate(system, directory, observer.note)
