"""The ``frostline`` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from cyclopts import App, CycloptsError, MissingArgumentError

from frostline import __version__
from frostline.cli.audit import audit
from frostline.cli.demo import demo
from frostline.cli.evaluate import evaluate
from frostline.cli.generate import generate
from frostline.cli.measure import measure
from frostline.cli.plan import plan
from frostline.cli.prove import prove
from frostline.cli.report import report
from frostline.cli.request import source_of
from frostline.cli.screen import BROKEN_PIPE, INTERRUPTED, output
from frostline.cli.script import is_script, keep_end_of_options, system_source
from frostline.cli.train import train
from frostline.config import config_app
from frostline.errors import AuditError, BudgetError, ConfigError, FrostlineError
from frostline.systems.registry import config_class, generate_options

_HELP = """Train the small part of a big model, in the memory you have, with the same gradients.

A CONFIG is a system's name or a YAML file; audit and measure also take a
training script.

Exit codes: 0 fine, 1 findings or over budget, 2 the request cannot be carried
out, 130 interrupted; a training run that had begun is saved first."""

app = App(name="frostline", help=_HELP, version=__version__, help_format="plaintext", result_action="return_value")
for verb in (audit, measure, plan, prove, train, evaluate, generate, demo, report):
    app.command(verb)


_WITH_KEYS = ("audit", "measure", "plan", "prove", "train", "evaluate", "generate")
_WITH_SCRIPTS = ("audit", "measure")


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _carry_out(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _drop_output()
        return BROKEN_PIPE


def _carry_out(words: list[str]) -> int:
    try:
        if words and is_script(words[0]):
            raise ConfigError(f"{words[0]!r} is not a verb", do=f"write frostline audit {words[0]}")
        if _asks_for_keys(words):
            return _print_keys(words[0], words[1])
        if words and words[0] in _WITH_SCRIPTS:
            words = keep_end_of_options(words)
        code = app(words, exit_on_error=False, print_error=False)
        return code if isinstance(code, int) else 0
    except (AuditError, BudgetError) as error:
        sys.stderr.write(f"frostline: {error}\n")
        return 1
    except MissingArgumentError as error:
        targetless = words[0] in _WITH_SCRIPTS and str(error).endswith("--target requires an argument.")
        sys.stderr.write(f"frostline: {'give a script, a system or a YAML file' if targetless else error}\n")
        return 2
    except (CycloptsError, FrostlineError) as error:
        sys.stderr.write(f"frostline: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("frostline: interrupted; nothing was saved\n")
        return INTERRUPTED


def _drop_output() -> None:
    """Nobody reads it, as behind `| head`: Python must not try once more when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            with suppress(OSError, ValueError):  # not a file
                os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _asks_for_keys(words: list[str]) -> bool:
    """``frostline VERB CONFIG --help``: the keys of that configuration belong to the answer."""
    if len(words) != 3 or words[0] not in _WITH_KEYS or words[2] not in ("--help", "-h"):
        return False
    return words[1][:1] != "-" and not is_script(words[1])


def _print_keys(verb: str, name: str) -> int:
    app.help_print([verb])
    source = system_source(verb, name) if verb in _WITH_SCRIPTS else source_of(name)
    output(f"Keys of {source.system}:\n")
    options = generate_options(source.system) if verb == "generate" else None
    config_app(config_class(source.system), source, f"frostline {verb} {name}", options=options).help_print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
