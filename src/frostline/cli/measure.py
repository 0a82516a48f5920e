"""``frostline measure``."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from frostline.cli.request import ConfigName, DeviceName, Json, PrintConfig, Words, read_request
from frostline.cli.screen import output
from frostline.config import dump_config
from frostline.records import to_json
from frostline.reports.terminal import memory_view


def measure(
    config: ConfigName,
    *words: Words,
    fake: Annotated[bool, Parameter(negative="", help="Predict on fake tensors: no weights, no data, no GPU.")] = False,
    device: DeviceName = "auto",
    json: Json = False,
    print_config: PrintConfig = False,
) -> int:
    """Measure one training step of a system: its peak, and what is alive there.

    Every key of the configuration is a word: --training.batch-size 8. `frostline measure semcom --help` lists them.
    """
    request = read_request(config, words)
    if print_config:
        output(dump_config(request))
        return 0
    from frostline import workflow

    report = workflow.measure_system(request, fake=fake, device=device)
    output(to_json(report, indent=1) if json else memory_view(report))
    return 0
