"""``frostline generate``."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from frostline.cli.evaluate import run_configuration
from frostline.cli.request import ConfigName, DeviceName, Json, PrintConfig, Words, read_generation
from frostline.cli.screen import output, progress
from frostline.config import dump_config
from frostline.errors import ConfigError

_OUT = "Where the files go, or the one file of ti; --checkpoint by default."


def generate(
    config: ConfigName,
    *words: Words,
    checkpoint: Annotated[Path | None, Parameter(help="The directory of a run.")] = None,
    out: Annotated[Path | None, Parameter(help=_OUT)] = None,
    device: DeviceName = "auto",
    json: Json = False,
    print_config: PrintConfig = False,
) -> int:
    """Let a trained system make something to look at: graf's views and turntables, ti's pictures.

    frostline generate ti --prompt "a photo of a <s>" --concept FILE --out out.png

    With --checkpoint and a system's name, the run's own configuration is used. Every key of the configuration is a
    word, such as --system.samples.format mp4; `frostline generate graf --help` lists them, and what else the system
    is told.
    """
    request, options = read_generation(run_configuration(config, checkpoint), words)
    if print_config:
        output(dump_config(request))
        return 0
    if checkpoint is None and options is None:
        raise ConfigError("no run was named", do="give --checkpoint RUN, the directory of a run")
    from frostline import workflow

    with progress() as observer:
        paths = workflow.generate(
            request, checkpoint=checkpoint, out=out or checkpoint, options=options, observer=observer, device=device
        )
    names = [str(path) for path in paths]
    output(json_module.dumps({"files": names}, indent=1) if json else "\n".join(names))
    return 0
