"""``frostline train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from frostline.cli.request import ConfigName, DeviceName, Json, PrintConfig, Words, listed, read_request
from frostline.cli.screen import INTERRUPTED, output, progress
from frostline.config import dump_config, load_config
from frostline.records import to_json
from frostline.reports.terminal import run_view
from frostline.systems.registry import config_class, read_original

_ACCEPT = "A code of a fault in the first step that is accepted, such as FL301; several times or with commas."
_FROM_ORIGINAL = "Take over a configuration of the published code that the system is about; graf has one."


def train(
    config: ConfigName,
    *words: Words,
    out: Annotated[Path | None, Parameter(help="The run's directory; runs/SYSTEM by default.")] = None,
    resume: Annotated[bool, Parameter(negative="", help="Continue the run in --out, bit by bit.")] = False,
    from_original: Annotated[Path | None, Parameter(help=_FROM_ORIGINAL)] = None,
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
    notes: list[str] = []
    if from_original is None:
        request = read_request(config, words)
    else:
        source, notes = read_original(config, from_original)
        request = load_config(config_class(config), source, words)
    if print_config:
        output("".join(f"# {note}\n" for note in notes) + dump_config(request))
        return 0
    from frostline import workflow

    directory = out or Path("runs") / request.SYSTEM
    with progress() as observer:
        for note in notes:
            observer.note(note)
        report = workflow.train(
            request, out=directory, observer=observer, resume=resume, device=device, accept=listed(accept)
        )
    output(to_json(report, indent=1) if json else run_view(report))
    return INTERRUPTED if report.interrupted else 0
