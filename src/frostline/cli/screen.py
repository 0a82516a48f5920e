"""Where a verb speaks: results to standard output, everything else to standard error."""

from __future__ import annotations

import os
import sys

from rich.console import Console, RenderableType

from frostline.reports.progress import ProgressReport

INTERRUPTED = 130
"""Exit code of a run that Ctrl-C ended: 128 and the signal's number, as shells do."""


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
        Console().print(what)


def progress() -> ProgressReport:
    """A run's progress on standard error."""
    return ProgressReport(Console(stderr=True, quiet=not speaks()))
