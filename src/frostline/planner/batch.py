"""The largest batch whose planned step fits into a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from frostline.errors import BudgetError, PlanError
from frostline.memory import Workload
from frostline.planner.search import SMALLEST, Allowed, Budget, Planner, plan_workload
from frostline.records import Plan


@dataclass(frozen=True)
class LargestBatch:
    """What `largest_batch` found.

    Attributes:
        batch_size: The largest that fits.
        plan: For that size.
    """

    batch_size: int
    plan: Plan


def largest_batch(
    make_workload: Callable[[int], Workload],
    budget: Budget,
    *,
    at_most: int = 4096,
    allow: Iterable[Allowed] = ("exact",),
) -> LargestBatch:
    """Find the largest batch that some plan fits into a budget.

    The smallest peak of a step grows with its batch by a straight line, nearly: two sizes give a guess, and every size
    that is returned or ruled out beside it was planned by itself.

    Steps of all sizes must agree in what they are: the same model, optimizers and number of micro-batches.

    Args:
        make_workload: Makes the step for a batch size; called for one size after another.
        budget: The peak to stay under, in bytes or as ``"6GiB"``.
        at_most: The largest size worth trying.
        allow: Classes of gradients that treatments may have.

    Raises:
        BudgetError: A batch of 1 does not fit.
        PlanError: The budget is ``"smallest"``, which every batch fits, or `at_most` is below 1.
    """
    allow = tuple(allow)
    if at_most < 1:
        raise PlanError(f"the largest batch to try is {at_most}", do="give a size of 1 or more")
    if budget == SMALLEST:
        raise PlanError("every batch has a smallest peak", do="give a budget in bytes")
    fits, too_large, stride = 1, at_most + 1, 1
    one = Planner(make_workload(1), allow=allow)
    best, peaks = one.plan(budget), {1: one.plan(SMALLEST).predicted_peak_bytes}
    if at_most > 1:
        peaks[2] = plan_workload(make_workload(2), budget=SMALLEST, allow=allow).predicted_peak_bytes
    while fits + 1 < too_large:
        size = _guess(peaks, best.budget_bytes)
        if not fits < size < too_large:
            size = min(fits + stride, too_large - 1) if size <= fits else max(too_large - stride, fits + 1)
            stride *= 2
        try:
            best = plan_workload(make_workload(size), budget=budget, allow=allow)
            fits = size
        except BudgetError as error:
            too_large, peaks[size] = size, error.smallest_bytes
    return LargestBatch(fits, best)


def _guess(peaks: dict[int, int], limit: int) -> int:
    """Where a line through the smallest peaks of the two largest sizes known meets the limit."""
    if len(peaks) < 2:
        return 1
    (a, peak_a), (b, peak_b) = sorted(peaks.items())[-2:]
    slope = (peak_b - peak_a) / (b - a)
    return int(a + (limit - peak_a) / slope) if slope > 0 else b + 1
