"""Compare autograd's gradients with finite differences, one parameter at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from frostline.errors import StepError
from frostline.gradflow.probe import Question, probe_step
from frostline.gradflow.target import Target


@dataclass(frozen=True, kw_only=True)
class GradientCheck:
    """One parameter's gradient along a random direction of length 1, in float64.

    Attributes:
        parameter: Its name.
        analytic: What autograd says; 0 where it says nothing.
        numeric: What a central difference of the loss says.
        resolution: What the difference cannot tell from 0.
    """

    parameter: str
    analytic: float
    numeric: float
    resolution: float

    @property
    def relative_error(self) -> float:
        """How far they part: 1e-7 or less for a gradient that is whole, 1/2 where half of it is missing."""
        apart = abs(self.analytic - self.numeric)
        return apart / max(abs(self.analytic), abs(self.numeric)) if apart > self.resolution else 0.0


def check_gradients(
    step: Callable[[], object],
    model: nn.Module,
    optimizers: Iterable[Optimizer] | Optimizer = (),
    *,
    backward: int = 0,
) -> tuple[GradientCheck, ...]:
    """Compare, for every trainable parameter, autograd's gradient of a step with a finite difference of its loss.

    The step is run twice for each parameter, up to a backward pass; everything is afterwards as it was. A
    straight-through estimator differs by design.

    Args:
        step: A training step, or a forward and a backward; it must do the same from the same random state.
        model: Whose parameters are checked.
        optimizers: All that the step uses.
        backward: The backward pass whose loss is looked at, counted from 0.

    Raises:
        StepError: The step raises an error in float64, or does not do the same each time.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    questions = [Question(targets=(Target(name, None, parameter),), backwards=(backward,)) for name, parameter in named]
    found = probe_step(
        step,
        questions,
        modules=[model],
        optimizers=(optimizers,) if isinstance(optimizers, Optimizer) else optimizers,
        learners=[parameter for _, parameter in named],
    )
    for (name, _), difference in zip(named, found, strict=True):
        if difference.trouble:
            raise StepError(f"the gradient of {name!r} cannot be checked: {difference.trouble}")
    return tuple(
        GradientCheck(
            parameter=name,
            analytic=difference.analytic,
            numeric=difference.numeric,
            resolution=difference.resolution,
        )
        for (name, _), difference in zip(named, found, strict=True)
    )
