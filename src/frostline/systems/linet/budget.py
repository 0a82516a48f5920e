"""The cheapest treatment with which a training step stays within a budget."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from frostline.memory import Workload, estimate
from frostline.systems.linet.network import LINet
from frostline.systems.linet.treatment import Treatment
from frostline.units import format_bytes, parse_bytes

_SLICES = 4


@dataclass(frozen=True)
class Choice:
    """A treatment, and what it was predicted to do.

    Attributes:
        treatment: The cheapest that fits; where none does, and for ``smallest``, the one with the smallest peak.
        peak_bytes: Of one step in which every sample has every stream: a guarantee for every modality dropout.
        plain_peak_bytes: Without any treatment.
        fits: Whether it is within the budget.
    """

    treatment: Treatment
    peak_bytes: int
    plain_peak_bytes: int
    fits: bool

    def __str__(self) -> str:
        return (
            f"{self.treatment}: at most {format_bytes(self.peak_bytes)} with all streams, predicted;"
            f" {format_bytes(self.plain_peak_bytes)} without"
        )


def choose_treatment(
    build_model: Callable[[], LINet], build_workload: Callable[[Any], Workload], budget: str
) -> Choice:
    """Predict the step under some treatments, and take the one that recomputes least.

    Nothing is run: each step is traced on fake tensors, in two seconds or so.

    Args:
        build_model: Makes the network.
        build_workload: Makes a step of it, on samples that have every stream.
        budget: Such as ``6GiB``, or ``smallest``.
    """
    ladder = treatments(build_model())

    @cache
    def peak_bytes(step: int) -> int:
        def build() -> LINet:
            model = build_model()
            model.treatment = ladder[step]
            return model

        return estimate(build, build_workload).peak_bytes

    last = len(ladder) - 1
    if budget == "smallest":
        chosen = min(range(last - 1, last + 1), key=peak_bytes)
        return Choice(ladder[chosen], peak_bytes(chosen), peak_bytes(0), True)
    limit = parse_bytes(budget)
    fits = peak_bytes(0) <= limit
    chosen = 0 if fits else bisect_left(range(last), True, lo=1, key=lambda step: peak_bytes(step) <= limit)
    return Choice(ladder[chosen], peak_bytes(chosen), peak_bytes(0), peak_bytes(chosen) <= limit)


def treatments(model: LINet) -> tuple[Treatment, ...]:
    """From the one that recomputes nothing to the one that recomputes every block; each needs less than the last."""
    early = [name for name, _ in model.blocks() if name.startswith("layer1.")]
    return (
        Treatment(),
        Treatment(recompute="activations"),
        Treatment(recompute="activations", stem_slices=_SLICES),
        Treatment(recompute="outputs", stem_slices=_SLICES),
        Treatment(recompute="outputs", blocks=dict.fromkeys(early, "blocks"), stem_slices=_SLICES),
        Treatment(recompute="blocks", stem_slices=_SLICES),
    )
