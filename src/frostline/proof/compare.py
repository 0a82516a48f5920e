"""Compare two sets of gradients, parameter by parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor, nn

from frostline.errors import StepError
from frostline.records import GradientDifference, ProofClass, ProofReport
from frostline.regions import trainable_parameters

Gradients = Mapping[str, Tensor | None]
"""A gradient by qualified parameter name; None where none arrived."""

_FLOORS_ALLOWED = 8
_EPS_OF_A_SUM = 4


def gradients_of(model: nn.Module) -> dict[str, Tensor | None]:
    """Copies of the gradients that the trainable parameters hold now; tied parameters once."""
    return {
        name: None if parameter.grad is None else parameter.grad.detach().clone()
        for name, parameter in trainable_parameters(model).items()
    }


def noise_floor(plain: Gradients, reference_fp64: Gradients) -> float:
    """The plain step's own rounding: its largest relative difference from the same step in fp64.

    Args:
        plain: The gradients in the precision that trains.
        reference_fp64: Those of the same model and step in double precision.

    Raises:
        StepError: A gradient is missing in one of the two, or is not finite.
    """
    differences = _differences(reference_fp64, plain)
    for difference in differences:
        if math.isinf(difference.max_relative):
            raise StepError(
                f"the gradient of {difference.name!r} cannot be compared with its fp64 reference",
                do="let the reference run the same step on a double copy of the model",
            )
    return max((difference.max_relative for difference in differences), default=0.0)


def compare_gradients(
    plain: Gradients, treated: Gradients, *, floor: float | None = None, loss_difference: float = 0.0
) -> ProofReport:
    """Say how far the treated step's gradients are from the plain step's, and in which class that falls.

    ``EXACT`` is bitwise. ``ROUNDING`` allows 8 times the noise floor: two orders of one sum differ by about
    as much as either differs from the true sum. ``BOUNDED`` is everything else, also a gradient that only one
    of the two steps has, and one that is not finite. ``none`` is the class where neither step has a gradient.

    Without a measured floor, 4 eps of the gradients' type is taken for it. A blocked sum of n terms is off by
    at most eps log2 n and typically by eps sqrt(log2 n), 4.5 eps for a million terms (Higham, Accuracy and
    Stability of Numerical Algorithms, section 4.2), and the floor of a six-layer transformer was measured at
    4 eps. A sum that cancels has a higher floor: measure it, or the class is ``BOUNDED``.

    Args:
        plain: The gradients to be matched.
        treated: The gradients of the step that saves memory.
        floor: What `noise_floor` measured.
        loss_difference: Absolute difference of the two losses, for the report.
    """
    differences = _differences(plain, treated)
    worst = max(differences, key=lambda difference: difference.max_relative, default=None)
    present = [gradient for gradients in (plain, treated) for gradient in gradients.values() if gradient is not None]
    return ProofReport(
        proof_class=_proof_class(differences, present, floor),
        worst=worst,
        per_parameter=differences,
        noise_floor=floor,
        loss_difference=loss_difference,
    )


def compare_states(
    report: ProofReport, plain: Gradients, treated: Gradients, *, same_random_state: bool
) -> ProofReport:
    """Add to a comparison of gradients what else the two steps left behind; its class can only become weaker.

    Args:
        report: Of the gradients.
        plain: The buffers after the plain step, by name.
        treated: The buffers after the treated step.
        same_random_state: Whether both left the random generators alike.
    """
    buffers = _differences(plain, treated)
    present = [buffer for buffers in (plain, treated) for buffer in buffers.values() if buffer is not None]
    classes = [report.proof_class]
    if report.proof_class != "none":
        classes += [_proof_class(buffers, present, report.noise_floor)] if present else []
        classes += [] if same_random_state else ["BOUNDED"]
    return replace(
        report,
        proof_class=max(classes, key=get_args(ProofClass).index),
        buffers=buffers,
        same_random_state=same_random_state,
    )


def _proof_class(differences: tuple[GradientDifference, ...], present: list[Tensor], floor: float | None) -> ProofClass:
    if not present:
        return "none"
    if all(difference.equal for difference in differences):
        return "EXACT"
    if floor is None:
        floor = _EPS_OF_A_SUM * max((torch.finfo(t.dtype).eps for t in present if t.is_floating_point()), default=0.0)
    within = all(difference.max_relative <= _FLOORS_ALLOWED * floor for difference in differences)
    return "ROUNDING" if within else "BOUNDED"


def _differences(plain: Gradients, treated: Gradients) -> tuple[GradientDifference, ...]:
    names = dict.fromkeys([*plain, *treated])
    return tuple(_difference(name, plain.get(name), treated.get(name)) for name in names)


def _difference(name: str, plain: Tensor | None, treated: Tensor | None) -> GradientDifference:
    if plain is None or treated is None:
        same = plain is treated
        return GradientDifference(
            name=name, equal=same, max_relative=0.0 if same else math.inf, cosine=1.0 if same else 0.0
        )
    if plain.shape != treated.shape:
        return GradientDifference(name=name, equal=False, max_relative=math.inf, cosine=0.0)
    a, b = _double(plain), _double(treated)
    return GradientDifference(
        name=name,
        equal=plain.dtype == treated.dtype and torch.equal(a, b),
        max_relative=_max_relative(a, b),
        cosine=_cosine(a, b),
    )


def _double(gradient: Tensor) -> Tensor:
    """A flat dense double on the host; every lower floating-point type fits into it without rounding."""
    dense = gradient if gradient.layout is torch.strided else gradient.to_dense()
    real = torch.view_as_real(dense) if dense.is_complex() else dense
    return real.detach().cpu().double().flatten()


def _max_relative(a: Tensor, b: Tensor) -> float:
    if a.numel() == 0 or torch.equal(a, b):
        return 0.0
    relative = float((a - b).abs().max() / a.abs().max())
    return math.inf if math.isnan(relative) else relative


def _cosine(a: Tensor, b: Tensor) -> float:
    if torch.equal(a, b):
        return 1.0
    norms = float(a.norm() * b.norm())
    return float(a @ b) / norms if norms > 0 else 0.0
