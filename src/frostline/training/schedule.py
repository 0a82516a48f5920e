"""Learning-rate schedules: pure functions of the step, so a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

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


def one_cycle(num_steps: int, rise: float = 0.3, initial: float = 1 / 25, final: float = 4e-6) -> Schedule:
    """Half a cosine up to 1 over the first share of the steps, and half a cosine down over the rest.

    Args:
        num_steps: Steps in all.
        rise: Share of them on the way up.
        initial: The factor of the first step.
        final: The factor of the last step and, should the run go on, behind it.

    Source: Smith and Topin, Super-Convergence (2018), with `torch.optim.lr_scheduler.OneCycleLR`'s two cosine phases;
    momentum stays as it is.
    """
    top = max(0.0, rise * num_steps - 1)

    def factor(step: int) -> float:
        if step < top:
            first, last, progress = initial, 1.0, step / top
        else:
            first, last, progress = 1.0, final, min(1.0, (step - top) / max(1.0, num_steps - 1 - top))
        return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2

    return factor


def milestones(steps: Sequence[int], factor: float) -> Schedule:
    """A product of as many factors as milestones lie behind.

    Args:
        steps: After so many steps the rate is multiplied once more.
        factor: By this.
    """
    return lambda step: factor ** sum(step >= milestone for milestone in steps)
