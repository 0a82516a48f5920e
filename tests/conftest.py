import os
import sys
from collections.abc import Iterator

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: a test asks nobody
os.environ.pop("COLUMNS", None)  # a worker of pytest-xdist has the terminal's width: what is not a terminal has none

from leaks import leaks, snapshot


@pytest.fixture(autouse=True)
def _leave_no_trace() -> Iterator[None]:
    """Fail a test that leaves global state behind; it is set up first, so every other fixture is gone by then."""
    before, excepthook = snapshot(), sys.excepthook
    yield
    sys.excepthook = excepthook  # a process group brings its own and leaves it
    found = leaks(before)
    if found:
        pytest.fail("the test leaves something behind:\n" + "\n".join(found))
