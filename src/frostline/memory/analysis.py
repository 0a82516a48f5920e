"""What an allocation log says: pure functions from the log to numbers, each about one device type."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from frostline.records import LivePoint
from frostline.tracing import Allocation, AllocationLog

SAVED = "saved for backward"
CATEGORIES = (
    "parameters",
    "gradients",
    "optimizer state",
    "buffers",
    "inputs",
    SAVED,
    "temporaries",
)


def live_bytes(log: AllocationLog, device: str) -> list[int]:
    """Bytes alive at the start of the step and after each of its events."""
    total = sum(n for number, n in log.resident.items() if log.allocations[number].device == device)
    totals = [total]
    for number, delta in log.events:
        if log.allocations[number].device == device:
            total += delta
        totals.append(total)
    return totals[log.step_start :]


def alive(log: AllocationLog, device: str, num_events: int) -> Counter[int]:
    """Bytes by number of the storages alive after so many events of the step."""
    bytes_by_number = Counter(log.resident)
    for number, delta in log.events[: log.step_start + num_events]:
        bytes_by_number[number] += delta
    return Counter(
        {number: n for number, n in bytes_by_number.items() if n and log.allocations[number].device == device}
    )


def category(allocation: Allocation) -> str:
    """What a storage is, one of `CATEGORIES`."""
    if allocation.kind == "step":
        return SAVED if allocation.saved else "temporaries"
    return allocation.kind


def by_category(log: AllocationLog, storages: Counter[int]) -> dict[str, int]:
    """Bytes of the storages by what they are, in the order of `CATEGORIES`."""
    totals = dict.fromkeys(CATEGORIES, 0)
    for number, num_bytes in storages.items():
        totals[category(log.allocations[number])] += num_bytes
    return totals


def by_category_over_time(log: AllocationLog, device: str, points: Sequence[LivePoint]) -> dict[str, tuple[int, ...]]:
    """Bytes alive at each of some points in order, by what they are, in the order of `CATEGORIES`."""
    totals = by_category(log, alive(log, device, 0))
    rows, seen = [], log.step_start
    for point in points:
        until = log.step_start + point.event
        for number, delta in log.events[seen:until]:
            if log.allocations[number].device == device:
                totals[category(log.allocations[number])] += delta
        rows.append(tuple(totals.values()))
        seen = until
    return dict(zip(totals, zip(*rows, strict=True), strict=True))


def by_module(log: AllocationLog, storages: Counter[int]) -> dict[str, int]:
    """Bytes of the storages by the module that allocated them, or else the phase; the largest first."""
    totals: Counter[str] = Counter()
    for number, num_bytes in storages.items():
        totals[place(log.allocations[number])] += num_bytes
    return dict(totals.most_common())


def by_line(log: AllocationLog, storages: Counter[int]) -> dict[str, int]:
    """Bytes of the storages by the user's line; what no line allocated stands under an empty one. Largest first."""
    totals: Counter[str] = Counter()
    for number, num_bytes in storages.items():
        totals[log.allocations[number].line] += num_bytes
    return dict(totals.most_common())


def saved_by(log: AllocationLog, storages: Counter[int]) -> dict[str, int]:
    """Bytes saved for backward, by the part of the model that keeps them."""
    totals = {"trainable parts": 0, "frozen parts": 0}
    for number, num_bytes in storages.items():
        allocation = log.allocations[number]
        if category(allocation) == SAVED:
            totals[f"{allocation.saved_by} parts"] += num_bytes
    return totals


def place(allocation: Allocation) -> str:
    """The module whose forward allocated a storage, or the phase where none was running."""
    return allocation.module or allocation.phase


def describe(allocation: Allocation) -> str:
    """``forward · vision_tower.blocks.0 · aten.gelu (8, 36864, 512)``."""
    where = (allocation.phase, allocation.module, f"{allocation.op} {allocation.shape}")
    return " · ".join(part for part in where if part)


def thin(live: Iterable[int], num_points: int = 400) -> tuple[LivePoint, ...]:
    """The curve in at most so many points: the lowest and the highest of each stretch, and both ends."""
    points = [LivePoint(event=event, live_bytes=num_bytes) for event, num_bytes in enumerate(live)]
    if len(points) <= num_points:
        return tuple(points)
    kept = {points[0], points[-1]}
    num_stretches = num_points // 2 - 1
    for i in range(num_stretches):
        stretch = points[len(points) * i // num_stretches : len(points) * (i + 1) // num_stretches]
        kept |= {min(stretch, key=_height), max(stretch, key=_height)}
    return tuple(sorted(kept, key=lambda point: point.event))


def _height(point: LivePoint) -> int:
    return point.live_bytes
