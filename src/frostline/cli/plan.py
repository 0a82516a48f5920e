"""``frostline plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from frostline.cli.request import ConfigName, Json, PrintConfig, Words, read_request
from frostline.cli.screen import output
from frostline.config import dump_config
from frostline.errors import ConfigError
from frostline.records import to_json
from frostline.reports.plans import plan_view

_OUT = "Also write the plan to this file, for `frostline prove --plan` and `apply_`."


def plan(
    config: ConfigName,
    *words: Words,
    out: Annotated[Path | None, Parameter(help=_OUT)] = None,
    json: Json = False,
    print_config: PrintConfig = False,
) -> int:
    """Plan a training step: what must be recomputed to stay under a budget?

    frostline plan semcom --memory.budget 1GiB

    The budget is the step's peak, weights included; `smallest` asks for the
    smallest peak there is. Every key of the configuration is a word, such as
    --training.batch-size 8; `frostline plan semcom --help` lists them.

    Nothing is computed: the step runs on tensors without values, so neither
    weights nor a GPU are needed, and the peak that is printed is that of a
    run of the planned step. `frostline train` with the same words plans for
    its own data, and trains by that plan. Gradients stay the same, bit by bit.

    Exit codes: 0 planned, 1 no plan fits the budget, 2 it could not be planned.
    """
    request = read_request(config, words)
    if print_config:
        output(dump_config(request))
        return 0
    from frostline.workflow.planning import plan_system

    made = plan_system(request)
    if out is not None:
        try:
            out.write_text(to_json(made, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"the plan cannot be written: {error.strerror}", where=str(out)) from None
    output(to_json(made, indent=1) if json else plan_view(made))
    return 0
