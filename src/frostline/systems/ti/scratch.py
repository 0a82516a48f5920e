"""A directory for files that a run without one of its own needs."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path


def make_scratch(owner: object) -> Path:
    """A new temporary directory, removed when its owner is gone."""
    path = tempfile.mkdtemp(prefix="frostline-")
    weakref.finalize(owner, shutil.rmtree, path, ignore_errors=True)
    return Path(path)
