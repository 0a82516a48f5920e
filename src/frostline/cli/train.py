"""``frostline train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from frostline.cli.request import ConfigName, DeviceName, Json, PrintConfig, Words, read_request
from frostline.cli.screen import INTERRUPTED, output, progress
from frostline.config import dump_config
from frostline.records import to_json
from frostline.reports.terminal import run_view


def train(
    config: ConfigName,
    *words: Words,
    out: Annotated[Path | None, Parameter(help="The run's directory; runs/SYSTEM by default.")] = None,
    resume: Annotated[bool, Parameter(negative="", help="Continue the run in --out, bit by bit.")] = False,
    device: DeviceName = "auto",
    json: Json = False,
    print_config: PrintConfig = False,
) -> int:
    """Train a system: checkpoint, resolved configuration, log and record go to one directory.

    Every key of the configuration is a word: --training.num-steps 500. `frostline train semcom --help` lists them.
    Ctrl-C saves first. Start with torchrun to train on several processes.
    """
    request = read_request(config, words)
    if print_config:
        output(dump_config(request))
        return 0
    from frostline import workflow

    directory = out or Path("runs") / request.SYSTEM
    with progress() as observer:
        report = workflow.train(request, out=directory, observer=observer, resume=resume, device=device)
    output(to_json(report, indent=1) if json else run_view(report))
    return INTERRUPTED if report.interrupted else 0
