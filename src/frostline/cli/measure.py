"""``frostline measure``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from frostline.cli.ending import exit_code_of
from frostline.cli.request import Json, Words
from frostline.cli.screen import output
from frostline.cli.script import (
    AsModule,
    PrintSystem,
    TargetName,
    check_script_options,
    is_script,
    read_system,
    script_arguments,
)
from frostline.config import Count, dump_config
from frostline.errors import ConfigError
from frostline.records import MemoryReport, to_json
from frostline.reports.terminal import memory_view

_FAKE = "Of a system only: predict on fake tensors, without weights, data or a GPU."
_DEVICE = "Of a system only: auto takes a GPU where there is one; with --fake, cuda is modelled on the CPU."
_STEPS = "Of a script only: training steps to see; the first is a warm-up if there are more. [default: 2]"
_TRACE = "Also write the step as a Chrome trace, for ui.perfetto.dev."
_SNAPSHOT = "Also write it as a memory snapshot with stacks, for pytorch.org/memory_viz."


def measure(
    target: TargetName,
    *words: Words,
    module: AsModule = False,
    steps: Annotated[Count | None, Parameter(help=_STEPS)] = None,
    fake: Annotated[bool, Parameter(negative="", show_default=False, help=_FAKE)] = False,
    device: Annotated[Literal["auto", "cpu", "cuda"], Parameter(help=_DEVICE)] = "auto",
    trace: Annotated[Path | None, Parameter(help=_TRACE)] = None,
    snapshot: Annotated[Path | None, Parameter(help=_SNAPSHOT)] = None,
    json: Json = False,
    print_config: PrintSystem = False,
) -> int:
    """Measure training steps: their peak, and what is alive there.

    A system: every key of its configuration is a word, such as
    --training.batch-size 8; `frostline measure semcom --help` lists them.
    With --fake the step is predicted; with --fake --device cuda, for a GPU
    that need not be there.

    A script, unmodified: frostline measure train.py --steps 2 -- ARGS
    What follows -- is the script's. It runs until its steps are seen and is
    stopped there; one that trains nothing is measured as a whole. With --json,
    what the script prints goes to standard error.
    """
    if is_script(target, module):
        given = {"--fake": fake, "--device": device != "auto", "--print-config": print_config}
        check_script_options(target, given)
        arguments = script_arguments(target, words, measure)
        return _measure_script(target, arguments, module, steps or 2, trace, snapshot, json)
    if steps is not None:
        raise ConfigError("--steps is for training scripts", where=target, do="leave it out: one step is measured")
    request = read_system("measure", target, words)
    if print_config:
        output(dump_config(request))
        return 0
    from frostline.workflow.measurement import Exports, measure_system

    _show(measure_system(request, fake=fake, device=device, exports=Exports(trace, snapshot)), json)
    return 0


def _measure_script(
    target: str,
    arguments: tuple[str, ...],
    module: bool,
    steps: int,
    trace: Path | None,
    snapshot: Path | None,
    json: bool,
) -> int:
    from frostline.workflow.measurement import Exports, measure_script

    report, end = measure_script(
        target, arguments, num_steps=steps, module=module, quiet=json, exports=Exports(trace, snapshot)
    )
    if end.reason != "interrupted":
        _show(report, json)
    outcome = "nothing is reported" if end.reason == "interrupted" else "measured until then"
    code = exit_code_of(end, f"measure {'-m ' if module else ''}{target}", arguments, outcome)
    if "saved tensor hooks" in end.error_text:
        sys.stderr.write("frostline: gradients of torch.func cannot be measured: torch allows no hooks beside them\n")
    return code


def _show(report: MemoryReport, json: bool) -> None:
    output(to_json(report, indent=1) if json else memory_view(report))
