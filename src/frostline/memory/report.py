"""From an allocation log to the record of it."""

from __future__ import annotations

from typing import Literal

from frostline.memory.analysis import (
    alive,
    by_category,
    by_category_over_time,
    by_line,
    by_module,
    describe,
    live_bytes,
    saved_by,
    thin,
)
from frostline.records import AllocatorCounters, MemoryReport
from frostline.tracing import AllocationLog

_KERNELS = "scratch memory inside single operators (oneDNN, FFT, attention kernels)"
CUDA_NOT_SEEN = (
    "the CUDA context, some hundred MiB outside the allocator",
    "cuBLAS workspaces, inside the allocator: about 8 MiB for each stream, 32 MiB from Hopper on; and cuDNN's",
    "scratch memory inside single operators (convolutions, sorting, gradients of embeddings)",
    "what the step itself moves to the CPU: it counts as if it stayed",
)
"""What the model of CUDA leaves out."""
_CUDA = "the CUDA context, cuBLAS and cuDNN workspaces, and what the caching allocator rounds up or keeps"


def build_report(
    log: AllocationLog,
    device: str,
    method: Literal["measured", "predicted"],
    *,
    not_seen: tuple[str, ...] = (),
    assumes: tuple[str, ...] = (),
    allocator: AllocatorCounters | None = None,
    covers: str = "one step",
) -> MemoryReport:
    """What a log says of the step that counts.

    Args:
        log: Of the trace.
        device: The device type to count on.
        method: Whether the tensors were real.
        not_seen: What this trace could not count, beside what no trace can.
        assumes: What a prediction takes for granted.
        allocator: CUDA's own counters.
        covers: Which part of the run counts.
    """
    live = live_bytes(log, device)
    peak_bytes = max(live)
    num_events = live.index(peak_bytes)
    timeline = thin(live)
    at_peak = alive(log, device, num_events)
    culprit = log.allocations[log.events[log.step_start + num_events - 1][0]] if num_events else None
    always = (_KERNELS,) if device != "cuda" else CUDA_NOT_SEEN if method == "predicted" else (_KERNELS, _CUDA)
    return MemoryReport(
        peak_bytes=peak_bytes,
        resident_bytes=live[0],
        by_category=by_category(log, at_peak),
        by_module=by_module(log, at_peak - alive(log, device, 0)),
        peak_at=describe(culprit) if culprit else "before the step",
        peak_line=culprit.line if culprit else "",
        timeline=timeline,
        method=method,
        device=device,
        num_ops=log.num_ops,
        not_seen=(*always, *not_seen, *sorted(log.not_seen)),
        allocator=allocator,
        by_line=by_line(log, at_peak),
        saved_by=saved_by(log, at_peak),
        covers=covers,
        assumes=assumes,
        timeline_by_category=by_category_over_time(log, device, timeline),
    )
