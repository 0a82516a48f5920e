"""A test file run as both processes of a gloo group."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch


def results_of_both(script, directory, *arguments):
    """Run a script as ranks 0 and 1, and load what each left as ``RANK.pt``.

    Args:
        script: Called with the arguments and the directory.
        directory: Where both leave their results.
        arguments: Before the directory.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1",
              "PYTHONPATH": str(Path(__file__).parent)}  # fmt: skip
    children = [
        subprocess.Popen(
            [sys.executable, script, *map(str, arguments), str(directory)],
            env={**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        errors = [process.communicate(timeout=500)[1] for process in children]
    finally:
        for process in children:
            process.kill()
    files = [Path(directory) / f"{rank}.pt" for rank in (0, 1)]
    assert [process.returncode for process in children] == [0, 0], errors
    return [torch.load(file, weights_only=True) for file in files]
