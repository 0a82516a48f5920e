"""A part of a bench in a process of its own, whose memory is counted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def process_peak() -> int:
    """The most memory this process had: `ru_maxrss` would count what its parent had when it was started."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def in_a_process_of_its_own(script: str) -> dict[str, Any]:
    """What a script prints as JSON on its last line when it is asked for its ``--large`` part."""
    done = subprocess.run([sys.executable, script, "--large"], capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
