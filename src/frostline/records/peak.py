"""The byte table: one training step, run in several ways."""

from __future__ import annotations

from dataclasses import dataclass

from frostline.records.memory import AllocatorCounters
from frostline.records.proof import ProofClass


@dataclass(frozen=True, kw_only=True)
class PeakRow:
    """One way to run the step.

    Attributes:
        name: Of the way.
        peak_bytes: Total bytes alive at the peak.
        resident_bytes: Bytes alive before the step.
        peak_at: The phase, module and operator that reached the peak.
        proof_class: How its gradients compare with the plain step's, measured at a size that runs.
        max_rel_grad_diff: Largest gradient difference over the largest gradient entry there; None where nothing trains.
        trains: What it trains.
        step_seconds_ratio: Its step time over the plain step's in the same run, at that size.
        allocator: CUDA's own counters of the same step, where it ran there.
        host_bytes: The most that lies in host memory (on the CPU in a file) instead, between forward and backward; not
            in `peak_bytes`.
    """

    name: str
    peak_bytes: int
    resident_bytes: int
    peak_at: str
    proof_class: ProofClass
    max_rel_grad_diff: float | None
    trains: str
    step_seconds_ratio: float | None
    allocator: AllocatorCounters | None = None
    host_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class PeakTable:
    """All ways to run one system's step at one size.

    Attributes:
        system: The system's name.
        setting: The size, and on what the bytes were counted.
        rows: One a way.
    """

    system: str
    setting: str
    rows: tuple[PeakRow, ...]
