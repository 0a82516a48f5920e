"""Does a plan leave the gradients as they are?"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from frostline.planner.installation import apply_
from frostline.proof import Gradients, prove_step
from frostline.records import Plan, ProofReport


def prove(
    step: Callable[[], object],
    model: nn.Module,
    plan: Plan,
    *,
    optimizers: Iterable[torch.optim.Optimizer] | torch.optim.Optimizer = (),
    reference: Callable[[], Gradients] | None = None,
) -> ProofReport:
    """Run a step as it is and under a plan, and compare the gradients bit by bit.

    Both start from the same parameters, buffers, optimizer state and random numbers; see `frostline.proof`.

    Args:
        step: One whole training step, which returns its loss.
        model: The model that the plan is for; afterwards as it was.
        plan: What to prove.
        optimizers: All that the step steps.
        reference: Runs the plain step in fp64 on a copy of the model and returns that copy's gradients; it gives the
            noise floor that ``ROUNDING`` is judged by.

    Raises:
        PlanError: The plan is for another model.
        StepError: The step does not return its loss.
    """

    def planned() -> object:
        with apply_(model, plan):
            return step()

    return prove_step(step, planned, model, optimizers=optimizers, reference=reference)
