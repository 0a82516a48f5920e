"""What one traced step allocated and released: facts only, every conclusion is drawn elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["parameters", "gradients", "optimizer state", "buffers", "inputs", "step"]
"""What a storage is; ``step`` is all that the step makes for itself."""
Phase = Literal["forward", "backward", "optimizer"]
SavedBy = Literal["", "trainable", "frozen"]
"""Which part keeps a storage for backward: one with a trainable parameter, an all-frozen one, or neither."""


@dataclass(slots=True)
class Allocation:
    """One storage, counted once however many tensors view it.

    Attributes:
        num_bytes: Its size now.
        device: The device type it lies on.
        op: The operator that made it, or that met it first if it was there before.
        shape: The shape of the first tensor on it.
        phase: Where in the step it was first seen.
        module: The innermost module of the model whose forward was running; empty outside all of them.
        line: The user's ``file.py:line``; empty where no user code was on the stack, or before the trace.
        kind: What it is; a gradient or a state is recognised some time after it was allocated.
        saved_by: Which part of the model has autograd keep it for backward; a trainable one counts first.
        stack: File, line and function of every frame, the innermost first; empty unless it was asked for.
    """

    num_bytes: int
    device: str
    op: str
    shape: tuple[int, ...]
    phase: Phase
    module: str
    line: str
    kind: Kind = "step"
    saved_by: SavedBy = ""
    stack: tuple[tuple[str, int, str], ...] = ()

    @property
    def saved(self) -> bool:
        """Whether autograd kept it for backward."""
        return self.saved_by != ""


@dataclass(slots=True)
class AllocationLog:
    """An append-only log of allocations and releases.

    Attributes:
        allocations: Every storage that was seen; its place here is its number.
        resident: Number and size of each storage that was there before the trace.
        events: Number of a storage, and by how many bytes it grew (an allocation) or shrank (a release).
        step_start: How many events lie before the step that counts; the rest is warm-up.
        num_ops: Operators seen in the step that counts.
        not_seen: Tensors whose memory could not be followed, by their layout.
    """

    allocations: list[Allocation] = field(default_factory=list)
    resident: dict[int, int] = field(default_factory=dict)
    events: list[tuple[int, int]] = field(default_factory=list)
    step_start: int = 0
    num_ops: int = 0
    not_seen: set[str] = field(default_factory=set)
