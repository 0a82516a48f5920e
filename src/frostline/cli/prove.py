"""``frostline prove``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from frostline.cli.request import ConfigName, DeviceName, Json, PrintConfig, Words, read_request
from frostline.cli.screen import output
from frostline.config import dump_config
from frostline.errors import ConfigError
from frostline.records import to_json
from frostline.reports.plans import proof_view

_PLAN = "A plan that `frostline plan --out` wrote, instead of one made for --memory.budget."


def prove(
    config: ConfigName,
    *words: Words,
    plan: Annotated[Path | None, Parameter(help=_PLAN)] = None,
    device: DeviceName = "auto",
    json: Json = False,
    print_config: PrintConfig = False,
) -> int:
    """Prove a plan: does the training step keep its gradients?

    frostline prove semcom --memory.budget 1GiB
    frostline prove semcom --plan plan.json

    The step is really run, as it is and under the plan, from the same values
    and random numbers, and the gradients are compared. Every key of the
    configuration is a word; `frostline prove semcom --help` lists them.
    A system with treatments of its own needs no budget, and proves more:

    frostline prove linet

    Exit codes: 0 the gradients are as the plan says, 1 they are further apart,
    a check failed or no plan fits the budget, 2 it could not be proved.
    """
    request = read_request(config, words)
    if print_config:
        output(dump_config(request))
        return 0
    if plan is not None and request.memory.budget:
        raise ConfigError("there are a plan and a budget", where=str(plan), do="give --plan or --memory.budget")
    from frostline.workflow.planning import prove_system, read_plan

    report, proved = prove_system(request, plan=None if plan is None else read_plan(plan), device=device)
    output(to_json(report, indent=1) if json else proof_view(report, proved))
    if not report.checks_pass:
        return 1
    order = ("EXACT", "ROUNDING", "BOUNDED", "none")
    return int(order.index(report.proof_class) > order.index(proved.proof_class))
