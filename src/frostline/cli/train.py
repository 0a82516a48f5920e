"""``frostline train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from frostline.cli.request import ConfigName, DeviceName, Json, PrintConfig, Words, listed, read_request
from frostline.cli.screen import INTERRUPTED, output, progress
from frostline.config import dump_config
from frostline.records import to_json
from frostline.reports.terminal import run_view

_ACCEPT = "A code of a fault in the first step that is accepted, such as FL301; several times or with commas."


def train(
    config: ConfigName,
    *words: Words,
    out: Annotated[Path | None, Parameter(help="The run's directory; runs/SYSTEM by default.")] = None,
    resume: Annotated[bool, Parameter(negative="", help="Continue the run in --out, bit by bit.")] = False,
    accept: Annotated[tuple[str, ...], Parameter(negative="", show_default=False, help=_ACCEPT)] = (),
    device: DeviceName = "auto",
    json: Json = False,
    print_config: PrintConfig = False,
) -> int:
    """Train a system: checkpoint, resolved configuration, log and record go to one directory.

    Every key of the configuration is a word: --training.num-steps 500;
    `frostline train semcom --help` lists them. The first step is audited: a
    fault that is not accepted ends the run with exit code 1. Ctrl-C saves first.
    Start with torchrun to train on several processes.
    """
    request = read_request(config, words)
    if print_config:
        output(dump_config(request))
        return 0
    from frostline import workflow

    directory = out or Path("runs") / request.SYSTEM
    with progress() as observer:
        report = workflow.train(
            request, out=directory, observer=observer, resume=resume, device=device, accept=listed(accept)
        )
    output(to_json(report, indent=1) if json else run_view(report))
    return INTERRUPTED if report.interrupted else 0
