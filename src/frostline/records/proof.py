"""Whether two steps give the same gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ProofClass = Literal["EXACT", "ROUNDING", "BOUNDED", "none"]
"""``EXACT`` bitwise; ``ROUNDING`` within a small multiple of the measured fp32-against-fp64 noise;
``BOUNDED`` approximate, the error is printed; ``none`` nothing to compare, for nothing trains."""


@dataclass(frozen=True, kw_only=True)
class GradientDifference:
    """One parameter's gradient, or one buffer, in the two steps.

    Attributes:
        name: The parameter's or the buffer's qualified name.
        equal: Whether the two are bitwise equal.
        max_relative: Largest absolute difference over the plain gradient's largest absolute entry;
            infinite where exactly one of the two is missing.
        cosine: Cosine of the angle between the two.
    """

    name: str
    equal: bool
    max_relative: float
    cosine: float


@dataclass(frozen=True, kw_only=True)
class ProofCheck:
    """One more thing that a system proves of its step.

    Attributes:
        name: Of what is checked.
        verdict: How its results compare with the plain step's; ``refused`` where the check shows why something that
            is often done must not be.
        text: What was compared, with its numbers.
    """

    name: str
    verdict: ProofClass | Literal["refused"]
    text: str


@dataclass(frozen=True, kw_only=True)
class ProofReport:
    """The comparison of a plain step with a treated one.

    Attributes:
        proof_class: The strongest class that holds for every parameter and every buffer. A step that leaves other
            random numbers for the next one is ``BOUNDED``.
        worst: The parameter with the largest relative difference; None where nothing trains.
        per_parameter: One entry a trainable parameter.
        noise_floor: The plain step's own relative error in fp32 against fp64, where it was measured.
        loss_difference: Absolute difference of the two losses.
        buffers: One entry a buffer of the model after the steps, such as a BatchNorm's statistics.
        same_random_state: Whether both steps leave the random generators alike.
        checks: What else the system proves.
    """

    proof_class: ProofClass
    worst: GradientDifference | None
    per_parameter: tuple[GradientDifference, ...]
    noise_floor: float | None
    loss_difference: float
    buffers: tuple[GradientDifference, ...] = ()
    same_random_state: bool = True
    checks: tuple[ProofCheck, ...] = ()

    @property
    def checks_pass(self) -> bool:
        """Whether every check is exact, within rounding, or a refusal."""
        return all(check.verdict in ("EXACT", "ROUNDING", "refused") for check in self.checks)
