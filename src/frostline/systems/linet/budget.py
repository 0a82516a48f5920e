"""The cheapest treatment with which a training step stays within a budget."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from frostline.memory import Workload
from frostline.planner.running import Run, Runner
from frostline.systems.linet.network import LINet
from frostline.systems.linet.treatment import Treatment
from frostline.tracing import build_fake, fake_tensors
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
        resident_bytes: Before the step.
        extra_work: Work over that without any treatment, minus 1; see `Plan`.
        peak_at: What reaches the peak.
    """

    treatment: Treatment
    peak_bytes: int
    plain_peak_bytes: int
    fits: bool
    resident_bytes: int
    extra_work: float
    peak_at: str

    def __str__(self) -> str:
        return (
            f"{self.treatment}: at most {format_bytes(self.peak_bytes)} with all streams, predicted;"
            f" {format_bytes(self.plain_peak_bytes)} without"
        )


def choose_treatment(
    build_model: Callable[[], LINet], build_workload: Callable[[Any], Workload], budget: str
) -> Choice:
    """Predict the step under some treatments, and take the one that recomputes least.

    Nothing is computed: each step is traced on fake tensors, in a second or so.

    Args:
        build_model: Makes the network.
        build_workload: Makes a step of it, on samples that have every stream.
        budget: Such as ``6GiB``, or ``smallest``.
    """
    with _traces(build_model, build_workload) as (ladder, trace):

        def peak_bytes(step: int) -> int:
            return trace(step).peak_bytes

        last = len(ladder) - 1
        smallest = budget == "smallest"
        # The last two are the only ones of which either may have the smaller peak.
        limit = min(map(peak_bytes, (last - 1, last))) if smallest else parse_bytes(budget)
        chosen = (
            0
            if peak_bytes(0) <= limit
            else bisect_left(range(last), True, lo=1, key=lambda step: peak_bytes(step) <= limit)
        )
        return _choice(ladder[chosen], trace(chosen), trace(0), limit)


def price_treatment(
    build_model: Callable[[], LINet], build_workload: Callable[[Any], Workload], treatment: Treatment
) -> Choice:
    """What a treatment is predicted to do, whatever the budget."""
    with _traces(build_model, build_workload, (Treatment(), treatment)) as (_, trace):
        return _choice(treatment, trace(1), trace(0), trace(1).peak_bytes)


def _choice(treatment: Treatment, run: Run, plain: Run, limit: int) -> Choice:
    return Choice(
        treatment=treatment,
        peak_bytes=run.peak_bytes,
        plain_peak_bytes=plain.peak_bytes,
        fits=run.peak_bytes <= limit,
        resident_bytes=run.live[0],
        extra_work=run.work / max(1, plain.work) - 1,
        peak_at=run.peak_at,
    )


@contextmanager
def _traces(
    build_model: Callable[[], LINet],
    build_workload: Callable[[Any], Workload],
    ladder: tuple[Treatment, ...] | None = None,
) -> Iterator[tuple[tuple[Treatment, ...], Callable[[int], Run]]]:
    """The treatments, and the step under each by its number, traced once."""
    mode = fake_tensors()
    model = build_fake(build_model, mode)
    rungs = ladder or treatments(model)
    with mode:
        workload = build_workload(model)
        with Runner(workload, {}).opened() as runner:

            @cache
            def trace(step: int) -> Run:
                model.treatment = rungs[step]
                return runner.run()

            yield rungs, trace


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
