"""The ``frostline`` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from frostline import __version__
from frostline.cli.audit import audit
from frostline.cli.demo import demo
from frostline.cli.evaluate import evaluate
from frostline.cli.measure import measure
from frostline.cli.request import source_of
from frostline.cli.screen import output
from frostline.cli.script import is_script, keep_end_of_options
from frostline.cli.train import train
from frostline.config import config_app
from frostline.errors import AuditError, FrostlineError
from frostline.systems.registry import config_class

_HELP = """Train the small part of a big model, in the memory you have, with the same gradients.

A CONFIG is a system's name or a YAML file; audit and measure also take a
training script.

Exit codes: 0 fine, 1 findings or over budget, 2 the request cannot be carried
out, 130 interrupted; a training run that had begun is saved first."""

app = App(name="frostline", help=_HELP, version=__version__, help_format="plaintext", result_action="return_value")
for verb in (audit, measure, train, evaluate, demo):
    app.command(verb)


_WITH_KEYS = ("audit", "measure", "train", "evaluate")
_WITH_SCRIPTS = ("audit", "measure")


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if _asks_for_keys(words):
            return _print_keys(words[0], words[1])
        if words and words[0] in _WITH_SCRIPTS:
            words = keep_end_of_options(words)
        code = app(words, exit_on_error=False, print_error=False)
        return code if isinstance(code, int) else 0
    except AuditError as error:
        sys.stderr.write(f"frostline: {error}\n")
        return 1
    except (CycloptsError, FrostlineError) as error:
        sys.stderr.write(f"frostline: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("frostline: interrupted; nothing was saved\n")
        return 130


def _asks_for_keys(words: list[str]) -> bool:
    """``frostline VERB CONFIG --help``: the keys of that configuration belong to the answer."""
    if len(words) != 3 or words[0] not in _WITH_KEYS or words[2] not in ("--help", "-h"):
        return False
    return words[1][:1] != "-" and not is_script(words[1])


def _print_keys(verb: str, name: str) -> int:
    app.help_print([verb])
    source = source_of(name)
    output(f"Keys of {source.system}:\n")
    config_app(config_class(source.system), source, f"frostline {verb} {name}").help_print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
