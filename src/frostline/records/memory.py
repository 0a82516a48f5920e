"""Where the bytes of one step go."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class LivePoint:
    """Bytes alive after the allocation or release number `event` of the step."""

    event: int
    live_bytes: int


@dataclass(frozen=True, kw_only=True)
class AllocatorCounters:
    """What CUDA's caching allocator counted over the same step; in a prediction, what it would count."""

    peak_allocated_bytes: int
    peak_reserved_bytes: int


@dataclass(frozen=True, kw_only=True)
class MemoryReport:
    """One step's peak and what is alive there.

    Attributes:
        peak_bytes: Total bytes alive at the peak, each storage counted once.
        resident_bytes: Bytes alive before the step: weights, buffers, gradients, optimizer state, inputs.
        by_category: Bytes alive at the peak, by what they are: parameters, gradients, optimizer state,
            buffers, inputs, saved for backward, temporaries.
        by_module: Bytes that the step itself had allocated and not released at the peak, by the module
            whose forward allocated them; what backward or the optimizer allocated stands under its phase.
        peak_at: The phase, module and operator that reached the peak.
        peak_line: The user's ``file.py:line`` there; empty where no user code was on the stack.
        timeline: Bytes alive over the step, thinned so that every local maximum of note stays.
        method: ``measured`` on real tensors, ``predicted`` on fake ones, or from smaller batches.
        device: The device type the bytes live on.
        num_ops: Operators seen.
        not_seen: What this number does not count.
        allocator: CUDA's own counters where there is a GPU, or the simulated ones of a prediction for CUDA.
        by_line: Bytes alive at the peak, by the user's ``file.py:line`` that allocated them; what was there
            before the trace stands under an empty line. The largest first.
        saved_by: What is saved for backward at the peak, by who keeps it: ``trainable parts``, or ``frozen parts``
            (a module all of whose parameters are frozen; one without parameters counts with the one around it).
        covers: Which part of the run this is about.
        assumes: What a prediction takes for granted, such as the kernels of a device that was not there.
        timeline_by_category: For every category of `by_category` its bytes at each point of `timeline`; they sum to
            the point's.
    """

    peak_bytes: int
    resident_bytes: int
    by_category: dict[str, int]
    by_module: dict[str, int]
    peak_at: str
    peak_line: str
    timeline: tuple[LivePoint, ...]
    method: Literal["measured", "predicted"]
    device: str
    num_ops: int
    not_seen: tuple[str, ...]
    allocator: AllocatorCounters | None = None
    by_line: dict[str, int] = field(default_factory=dict)
    saved_by: dict[str, int] = field(default_factory=dict)
    covers: str = "one step"
    assumes: tuple[str, ...] = ()
    timeline_by_category: dict[str, tuple[int, ...]] = field(default_factory=dict)
