"""Learning-rate schedules: pure functions of the step, so a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]
"""Steps made before this one -> factor on each parameter group's initial learning rate."""


def constant(warmup_steps: int) -> Schedule:
    """A linear rise over `warmup_steps` steps, then 1."""
    return lambda step: min(1.0, (step + 1) / max(1, warmup_steps))


def cosine(warmup_steps: int, num_steps: int, final: float = 0.02) -> Schedule:
    """A linear rise over `warmup_steps` steps, then half a cosine that reaches `final` at the last step.

    Args:
        warmup_steps: Steps of the rise.
        num_steps: Steps in all, the rise included.
        final: The factor at the last step and, should the run go on, behind it.

    Source: Loshchilov and Hutter, SGDR (2017), equation 5, one cycle.
    """
    rise = constant(warmup_steps)

    def factor(step: int) -> float:
        progress = (step - warmup_steps) / max(1, num_steps - 1 - warmup_steps)
        fall = (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2
        return rise(step) * (final + (1 - final) * fall)

    return factor
