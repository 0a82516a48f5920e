"""``frostline evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from frostline.cli.request import ConfigName, DeviceName, Json, PrintConfig, Words, read_request, source_of
from frostline.cli.screen import output, progress
from frostline.config import dump_config
from frostline.errors import ConfigError
from frostline.records import to_json
from frostline.reports.files import write_csv, write_curves
from frostline.reports.terminal import evaluation_view
from frostline.systems.registry import SYSTEMS


def evaluate(
    config: ConfigName,
    *words: Words,
    checkpoint: Annotated[Path | None, Parameter(help="The directory of a run.")] = None,
    baselines: Annotated[bool, Parameter(negative="", help="Also train the alternatives that need training.")] = False,
    out: Annotated[Path | None, Parameter(help="Where CSV and PNG go; --checkpoint by default.")] = None,
    device: DeviceName = "auto",
    json: Json = False,
    print_config: PrintConfig = False,
) -> int:
    """Evaluate a trained system, or monitor the frozen model alone (--system.codec none).

    With --checkpoint and a system's name, the run's own configuration is used. Every key of the configuration is a
    word; `frostline evaluate semcom --help` lists them.
    """
    request = read_request(run_configuration(config, checkpoint), words)
    if print_config:
        output(dump_config(request))
        return 0
    from frostline import workflow

    directory = out or checkpoint
    if out is not None:
        workflow.make_directory(out)  # before minutes of work, not after
    with progress() as observer:
        report = workflow.evaluate(
            request,
            checkpoint=checkpoint,
            observer=observer,
            baselines=baselines,
            device=device,
        )
    if directory is not None:
        (directory / "evaluation.json").write_text(to_json(report, indent=1), encoding="utf-8")
        write_csv(report, directory / "evaluation.csv")
        write_curves(report, directory / "evaluation.png")
    output(to_json(report, indent=1) if json else evaluation_view(report))
    return 0


def run_configuration(name: str, checkpoint: Path | None) -> str:
    """The run's own configuration where only the system was named."""
    if checkpoint is None or name not in SYSTEMS or not (checkpoint / "config.yaml").exists():
        return name
    source = source_of(str(checkpoint / "config.yaml"))
    if source.system != name:
        raise ConfigError(f"the run is of {source.system!r}, not of {name!r}", where=str(checkpoint))
    return source.path
