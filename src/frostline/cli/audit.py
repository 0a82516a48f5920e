"""``frostline audit``."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from frostline.cli.ending import exit_code_of
from frostline.cli.request import Json, Words, listed
from frostline.cli.screen import INTERRUPTED, output
from frostline.cli.script import (
    AsModule,
    PrintSystem,
    SystemDevice,
    TargetName,
    check_script_options,
    is_script,
    read_system,
    script_arguments,
)
from frostline.config import Count, dump_config
from frostline.errors import ConfigError
from frostline.records import AuditReport, to_json
from frostline.reports.terminal import audit_view

if TYPE_CHECKING:
    from frostline.workflow.script import ScriptEnd

_STEPS = "Training steps to see, of each phase. [default: 3 of a script, 1 of a system]"
_LEARN = "A glob of parameters that should learn, such as 'head.*', in addition to what the optimizers hold."
_STAY = "A glob of parameters and buffers that must not move."
_FLOW = "TERM=GLOB: what a loss term should train, and nothing else."
_PROBE = "Prove each suspected cut by finite differences: runs it again, some times for each."
_ACCEPT = "A code to accept, such as FL301."

Several = tuple[str, ...]


def audit(
    target: TargetName,
    *words: Words,
    module: AsModule = False,
    steps: Annotated[Count | None, Parameter(help=_STEPS)] = None,
    learn: Annotated[Several, Parameter(negative="", show_default=False, help=_LEARN)] = (),
    stay: Annotated[Several, Parameter(negative="", show_default=False, help=_STAY)] = (),
    flow: Annotated[Several, Parameter(negative="", show_default=False, help=_FLOW)] = (),
    accept: Annotated[Several, Parameter(negative="", show_default=False, help=_ACCEPT)] = (),
    probe: Annotated[bool, Parameter(negative="", help=_PROBE)] = False,
    no_source: Annotated[bool, Parameter(negative="", help="Leave the source lines out.")] = False,
    device: SystemDevice = "auto",
    json: Json = False,
    print_config: PrintSystem = False,
) -> int:
    """Audit training steps: does every gradient arrive where it should?

    A script, unmodified: frostline audit train.py --steps 3 -- ARGS
    What follows -- is the script's. It runs until its steps are seen and is
    stopped there. With --json, what the script prints goes to standard error.

    A system: every key of its configuration is a word, such as
    --training.batch-size 8; `frostline audit semcom --help` lists them. What
    should learn and what must stay is the system's own.

    --learn, --stay, --flow and --accept can be given several times, or several
    globs and codes separated by commas. On a line of the program,
    `# frostline: accept FL101 because ...` accepts one finding there.

    Exit codes: 0 no fault, 1 faults that nobody accepted, 2 it could not be
    audited, 130 interrupted; what was found until then is reported.
    """
    declared = {"learn": listed(learn), "stay": listed(stay), "accept": listed(accept)}
    terms = _terms(flow)
    if is_script(target, module):
        check_script_options(target, {"--device": device != "auto", "--print-config": print_config})
        from frostline.workflow.audit import audit_script

        arguments = script_arguments(target, words, audit)
        report, end = audit_script(
            target, arguments, num_steps=steps or 3, probe=probe, module=module, quiet=json, flow=terms, **declared
        )
        found = _show_script(report, end, json, no_source)
        outcome = "audited until then" if report.num_steps else "nothing was audited"
        ended = exit_code_of(end, f"audit {'-m ' if module else ''}{target}", arguments, outcome)
        return ended if ended == INTERRUPTED else found or ended or _unless_nothing(report, json)
    request = read_system("audit", target, words)
    if print_config:
        output(dump_config(request))
        return 0
    from frostline.workflow.audit import audit_system

    return _show(
        audit_system(request, num_steps=steps or 1, probe=probe, device=device, flow=terms, **declared), json, no_source
    )


def _show_script(report: AuditReport, end: ScriptEnd, json: bool, no_source: bool) -> int:
    if end.exit_code and end.reason != "interrupted" and not report.num_steps and not report.findings:
        return 0  # the script's own error says it all
    if not json:
        output("")  # the script's own output ends above
    return _show(report, json, no_source)


def _show(report: AuditReport, json: bool, no_source: bool) -> int:
    output(to_json(report, indent=1) if json else audit_view(report, source=not no_source))
    return 1 if report.faults else 0


def _unless_nothing(report: AuditReport, json: bool) -> int:
    if report.num_steps:
        return 0
    if json:  # the text ends with it
        sys.stderr.write(f"frostline: {report.verdict}\n")
    return 2


def _terms(texts: Iterable[str]) -> dict[str, Several]:
    """What each loss term should train.

    Raises:
        ConfigError: A text is not TERM=GLOB.
    """
    terms: dict[str, Several] = {}
    for text in texts:
        term, _, globs = text.partition("=")
        if not term.strip() or not listed([globs]):
            raise ConfigError(
                f"{text!r} does not say what a loss term trains",
                where="--flow",
                do="write TERM=GLOB or TERM=GLOB,GLOB, such as policy=actor.*",
            )
        terms[term.strip()] = (*terms.get(term.strip(), ()), *listed([globs]))
    return terms
