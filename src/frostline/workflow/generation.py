"""Let a trained system make something to look at."""

from __future__ import annotations

from pathlib import Path

from frostline.config import RunConfig
from frostline.errors import ConfigError
from frostline.workflow.evaluation import trained
from frostline.workflow.session import SILENT, Device, Generative, RunObserver, make_directory, verbs_of


def generate(
    config: RunConfig,
    *,
    checkpoint: Path | str,
    out: Path | str,
    observer: RunObserver = SILENT,
    device: Device = "auto",
) -> list[Path]:
    """Files that a trained system makes.

    Args:
        config: Of a system that makes pictures; a run's own lies in its directory.
        checkpoint: A run's directory.
        out: The directory the files go to.
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
    if not isinstance(verbs, Generative):
        raise ConfigError(f"{config.SYSTEM} makes nothing to look at", do="evaluate it instead")
    make_directory(Path(out))
    with trained(config, checkpoint=checkpoint, observer=observer, device=device) as system:
        return verbs.generate(system, Path(out), observer.note)
