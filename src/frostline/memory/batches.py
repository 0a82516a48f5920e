"""How many bytes one step needs at a large batch, from two small real ones: every storage grows by the affine law."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from frostline.errors import StepError
from frostline.memory.analysis import alive, describe, live_bytes
from frostline.memory.measurement import Workload, device_type, trace_step
from frostline.memory.recording import record_log
from frostline.memory.report import build_report
from frostline.records import MemoryReport
from frostline.tracing import Allocation, AllocationLog

_LARGE = 0.01
"""A storage of this share of the peak must grow as the law says."""


def estimate_by_batches(
    workload_for_batch: Callable[[int], Workload],
    *,
    target: int,
    small: tuple[int, int] = (8, 16),
    reason: str = "",
) -> MemoryReport:
    """Run one real step at two small batch sizes, and let every storage grow to the target's.

    A storage has ``a + c * batch_size`` bytes. Both steps must allocate the same storages in the same order, and
    none of weight may grow faster than the batch. The law is each storage's, so it holds where the peak moves from
    one phase to another, too; the report says so.

    Args:
        workload_for_batch: Makes a real workload for a batch size; each is traced and dropped.
        target: The batch size that counts.
        small: The two that are run. The larger, the better kernels that pad keep the law: oneDNN's LSTM is up to 4 %
            off it at 8 and 16, and on it at 16 and 32.
        reason: Why a prediction on fake tensors did not do, for the report.

    Returns:
        The report of the target's step; its `method` is ``predicted``.

    Raises:
        StepError: The law does not hold for this step.
    """
    first, second = small
    if not 0 < first < second:
        raise StepError(f"small must be two batch sizes, the smaller one first, not {small}")
    less, device = _trace(workload_for_batch(first))
    more, _ = _trace(workload_for_batch(second))
    _check_same_course(less, more, small)
    log = _grown(less, more, (target - first) / (second - first))
    _check_growth(log, less, more, small, device)
    record_log(log, device)
    assumes = [f"every storage is a + c * batch_size bytes, from real steps at batch sizes {first} and {second}"]
    before, after = _peak_phase(more, device), _peak_phase(log, device)
    if before != after:
        assumes.append(f"the peak moves from the {before} at batch size {second} to the {after}")
    if reason:
        assumes.append(f"fake tensors did not do: {reason}")
    return build_report(
        log,
        device,
        "predicted",
        assumes=tuple(assumes),
        covers=f"one step at batch size {target}",
    )


def _trace(workload: Workload) -> tuple[AllocationLog, str]:
    return trace_step(workload)[0], device_type(workload.model)


def _check_same_course(less: AllocationLog, more: AllocationLog, small: tuple[int, int]) -> None:
    def differs(one: Allocation, other: Allocation) -> bool:
        return (one.op, one.phase, one.module) != (other.op, other.phase, other.module)

    pairs = zip(less.allocations, more.allocations, strict=False)
    parting = next(((one, other) for one, other in pairs if differs(one, other)), None)
    if (
        parting is None
        and len(less.allocations) == len(more.allocations)
        and less.resident.keys() == more.resident.keys()
    ):
        return
    one, other = (
        (describe(each) for each in parting)
        if parting
        else (f"{len(log.allocations)} storages" for log in (less, more))
    )
    raise StepError(
        f"the steps at batch sizes {small[0]} and {small[1]} do not allocate the same: {one}, and {other}",
        where=parting[1].line if parting else "",
        do="measure a real step, or take small batches nearer to the one that counts",
    )


def _grown(less: AllocationLog, more: AllocationLog, steps: float) -> AllocationLog:
    """The log of the larger batch, with every storage so many steps from the smaller batch's size to the larger's."""

    def grow(one: int, other: int) -> int:
        return max(0, round(one + (other - one) * steps))

    # How much each storage has been given and has lost so far, event by event: a resize is an event of its own.
    sizes = _sizes(less)
    taken: Counter[int] = Counter()
    held = {number: grow(less.resident[number], size) for number, size in more.resident.items()}
    log = AllocationLog(
        allocations=[
            replace(
                other,
                num_bytes=grow(one.num_bytes, other.num_bytes),
                shape=tuple(map(grow, one.shape, other.shape)),
            )
            for one, other in zip(less.allocations, more.allocations, strict=True)
        ],
        resident=dict(held),
        step_start=more.step_start,
        num_ops=more.num_ops,
        not_seen=less.not_seen | more.not_seen,
    )
    current = Counter(more.resident)
    for number, delta in more.events:
        current[number] += delta
        before = sizes[number][taken[number]] if taken[number] < len(sizes[number]) else 0
        taken[number] += 1
        size = grow(before, current[number])
        log.events.append((number, size - held.get(number, 0)))
        held[number] = size
    return log


def _sizes(log: AllocationLog) -> list[list[int]]:
    """The sizes of each storage after each of its events."""
    current, sizes = Counter(log.resident), [list[int]() for _ in log.allocations]
    for number, delta in log.events:
        current[number] += delta
        sizes[number].append(current[number])
    return sizes


def _check_growth(
    log: AllocationLog, less: AllocationLog, more: AllocationLog, small: tuple[int, int], device: str
) -> None:
    """Two points cannot tell a curve from a line, but a line that starts below zero is none."""
    live = live_bytes(log, device)
    at_peak = alive(log, device, live.index(max(live)))
    for number, num_bytes in at_peak.items():
        one, other = less.allocations[number], more.allocations[number]
        at_zero = one.num_bytes - (other.num_bytes - one.num_bytes) / (small[1] - small[0]) * small[0]
        if num_bytes > _LARGE * max(live) and at_zero < -_LARGE * one.num_bytes:
            raise StepError(
                f"'{describe(other)}' is not a + c * batch_size bytes, with a and c no less than 0:"
                f" {one.num_bytes:,} at {small[0]}, {other.num_bytes:,} at {small[1]}",
                where=other.line,
                do="measure a real step",
            )


def _peak_phase(log: AllocationLog, device: str) -> str:
    live = live_bytes(log, device)
    num_events = live.index(max(live))
    if not num_events:
        return "time before the step"
    number, _ = log.events[log.step_start + num_events - 1]
    return log.allocations[number].phase
