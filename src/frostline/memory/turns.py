"""Times of several steps that are compared: they take turns, so that what else the machine does meets all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence


def cpu_seconds(steps: Sequence[Callable[[], object]], num_rounds: int) -> list[list[float]]:
    """Of each step in each round, after one round that does not count; every round starts with another step."""
    seconds: list[list[float]] = [[] for _ in steps]
    for round_number in range(num_rounds + 1):
        for turn in range(len(steps)):
            at = (turn + round_number) % len(steps)
            start = time.process_time()
            steps[at]()
            if round_number:
                seconds[at].append(time.process_time() - start)
    return seconds
