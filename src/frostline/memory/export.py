"""An allocation log in the forms that other people's viewers open: a Chrome trace and a CUDA memory snapshot.

Neither has a clock: a microsecond on their time axis is one allocation or release.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterator
from typing import Any

from frostline.memory.analysis import alive, by_category_over_time, category, describe, live_bytes, thin
from frostline.tracing import Allocation, AllocationLog

_NUM_POINTS, _NUM_INSTANTS = 4000, 100
_BASE_ADDRESS, _ALIGNMENT = 2**32, 512


def chrome_trace(log: AllocationLog, device: str) -> dict[str, Any]:
    """The step for chrome://tracing and ui.perfetto.dev, to be written as JSON.

    Live bytes by category are counters, the biggest allocations instant events, the phases slices.
    """
    names = (("process_name", f"frostline measure, {device}"), ("thread_name", "step"))
    heads = [{"ph": "M", "pid": 1, "tid": 1, "name": name, "args": {"name": text}} for name, text in names]
    return {
        "traceEvents": [*heads, *_slices(log, device), *_counters(log, device), *_instants(log, device)],
        "displayTimeUnit": "ms",
        "otherData": {"clock": "1 us is one allocation or release, not time"},
    }


def memory_snapshot(log: AllocationLog, device: str) -> dict[str, Any]:
    """The step in the layout of `torch.cuda.memory._snapshot`, for pytorch.org/memory_viz; pickle it by protocol 4.

    Addresses are those of a first-fit allocator with one segment: sizes and order are the step's, places are not.
    What was alive before the step is allocated at the start of the trace. Frames need a log with stacks.
    """
    arena, trace, blocks = _Arena(), [], dict[int, dict[str, Any]]()
    for number, num_bytes in _sizes(log, device):
        if number in blocks:
            block = blocks.pop(number)
            arena.free(block["addr"], block["size"])
            trace += [{**block, "action": action} for action in ("free_requested", "free_completed")]
        if num_bytes:
            allocation = log.allocations[number]
            blocks[number] = {
                "action": "alloc",
                "addr": arena.allocate(num_bytes),
                "size": num_bytes,
                "stream": 0,
                "frames": _frames(allocation),
                "category": category(allocation),
            }
            trace.append(blocks[number])
    segment = _segment(arena, sorted(blocks.values(), key=lambda block: int(block["addr"])))
    # The viewer looks for a category 'unknown' and, if there is none, fails on a misspelt name of its own.
    begin = {"action": "segment_alloc", "addr": _BASE_ADDRESS, "size": arena.num_bytes, "stream": 0, "frames": []}
    return {
        "segments": [segment] if arena.num_bytes else [],
        "device_traces": [[{**begin, "category": "unknown"}, *trace] if arena.num_bytes else []],
        "allocator_settings": {},
        "external_annotations": [],
    }


def _sizes(log: AllocationLog, device: str) -> Iterator[tuple[int, int]]:
    """Number and new size of a storage, for what is there at the start and for each event of the step."""
    sizes = Counter(alive(log, device, 0))
    yield from sorted(sizes.items())
    for number, delta in log.events[log.step_start :]:
        if log.allocations[number].device == device and delta:
            sizes[number] += delta
            yield number, sizes[number]


def _frames(allocation: Allocation) -> list[dict[str, Any]]:
    """What was allocated, as if it were the innermost frame, and the stack around it."""
    stack = (("frostline", 0, describe(allocation)), *allocation.stack)
    return [{"filename": path, "line": line, "name": name} for path, line, name in stack]


def _segment(arena: _Arena, alive_blocks: list[dict[str, Any]]) -> dict[str, Any]:
    blocks: list[dict[str, Any]] = []
    address = _BASE_ADDRESS
    for block in [*alive_blocks, {"addr": _BASE_ADDRESS + arena.num_bytes, "size": 0}]:
        if block["addr"] > address:
            gap = block["addr"] - address
            blocks.append({"address": address, "size": gap, "requested_size": 0, "state": "inactive", "frames": []})
        if block["size"]:
            size = _aligned(block["size"])
            blocks.append(
                {
                    "address": block["addr"],
                    "size": size,
                    "requested_size": block["size"],
                    "state": "active_allocated",
                    "frames": block["frames"],
                }
            )
            address = block["addr"] + size
    active = [block for block in blocks if block["state"] == "active_allocated"]
    return {
        "device": 0,
        "address": _BASE_ADDRESS,
        "total_size": arena.num_bytes,
        "allocated_size": sum(block["size"] for block in active),
        "active_size": sum(block["size"] for block in active),
        "requested_size": sum(block["requested_size"] for block in active),
        "stream": 0,
        "segment_type": "large",
        "segment_pool_id": (0, 0),
        "is_expandable": False,
        "frames": [],
        "blocks": blocks,
    }


class _Arena:
    """Addresses by first fit, from one segment that grows."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self._holes: list[tuple[int, int]] = []  # address and size, by address; no two touch

    def allocate(self, num_bytes: int) -> int:
        size = _aligned(num_bytes)
        for i, (address, hole) in enumerate(self._holes):
            if hole >= size:
                self._holes[i : i + 1] = [(address + size, hole - size)] if hole > size else []
                return address
        self.num_bytes += size
        return _BASE_ADDRESS + self.num_bytes - size

    def free(self, address: int, num_bytes: int) -> None:
        size = _aligned(num_bytes)
        i = bisect.bisect(self._holes, (address, 0))
        if i < len(self._holes) and address + size == self._holes[i][0]:
            size += self._holes.pop(i)[1]
        if i and sum(self._holes[i - 1]) == address:
            address, size = self._holes[i - 1][0], self._holes[i - 1][1] + size
            self._holes.pop(i := i - 1)
        self._holes.insert(i, (address, size))


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


def _counters(log: AllocationLog, device: str) -> Iterator[dict[str, Any]]:
    points = thin(live_bytes(log, device), _NUM_POINTS)
    series = by_category_over_time(log, device, points)
    for point, sizes in zip(points, zip(*series.values(), strict=True), strict=True):
        args = dict(zip(series, sizes, strict=True))
        yield {"ph": "C", "pid": 1, "name": "live bytes", "ts": point.event, "args": args}


def _instants(log: AllocationLog, device: str) -> Iterator[dict[str, Any]]:
    made = [(delta, event, number) for event, number, delta in _made(log, device)]
    for num_bytes, event, number in sorted(made, reverse=True)[:_NUM_INSTANTS]:
        allocation = log.allocations[number]
        args = {"bytes": num_bytes, "category": category(allocation), "line": allocation.line}
        yield {"ph": "i", "s": "t", "pid": 1, "tid": 1, "name": describe(allocation), "ts": event, "args": args}


def _slices(log: AllocationLog, device: str) -> Iterator[dict[str, Any]]:
    """One for each stretch of allocations of one phase."""
    open_slice: dict[str, Any] | None = None
    for event, number, _ in _made(log, device):
        phase = log.allocations[number].phase
        if open_slice is None or open_slice["name"] != phase:
            if open_slice is not None:
                yield open_slice
            open_slice = {"ph": "X", "pid": 1, "tid": 1, "name": phase, "ts": event, "dur": 1}
        open_slice["dur"] = event - open_slice["ts"] + 1
    if open_slice is not None:
        yield open_slice


def _made(log: AllocationLog, device: str) -> Iterator[tuple[int, int, int]]:
    """Event, storage and bytes of each allocation of the step."""
    for event, (number, delta) in enumerate(log.events[log.step_start :], start=1):
        if delta > 0 and log.allocations[number].device == device:
            yield event, number, delta
