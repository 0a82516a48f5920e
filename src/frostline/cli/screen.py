"""Where a verb speaks: results to standard output, everything else to standard error."""

from __future__ import annotations

import os
import sys

from rich.console import Console, RenderableType

from frostline.reports.progress import ProgressReport

_UNWRAPPED = 10_000
INTERRUPTED = 130
"""Exit code of a run that Ctrl-C ended: 128 and the signal's number, as shells do."""
BROKEN_PIPE = 141
"""The same of a command whose output nobody reads any more, as behind `| head`."""


def speaks() -> bool:
    """Whether this process is the one of its run that speaks, as torchrun numbers them."""
    return os.environ.get("RANK", "0") == "0"


def output(what: RenderableType) -> None:
    """Print a result; text goes out as it is, so that it can be piped."""
    if not speaks():
        return
    if isinstance(what, str):
        sys.stdout.write(what if what.endswith("\n") else what + "\n")
    else:
        _print(what)


def _print(what: RenderableType) -> None:
    console = Console()
    if console.is_terminal:
        console.print(what)
        return
    if "COLUMNS" not in os.environ:
        console = Console(width=_UNWRAPPED)  # a place must not be broken in two where a program reads it
    with console.capture() as captured:
        console.print(what)
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def progress() -> ProgressReport:
    """A run's progress on standard error."""
    return ProgressReport(Console(stderr=True, quiet=not speaks()))
