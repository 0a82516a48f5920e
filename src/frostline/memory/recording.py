"""Keep the allocation log behind a measurement, for those who want more than the report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from frostline.tracing import AllocationLog


@dataclass
class Recording:
    """The logs of what was measured inside `recording`, each with the device type its report is about.

    Attributes:
        stacks: Whether every allocation keeps its whole stack.
        logs: In order.
    """

    stacks: bool = False
    logs: list[tuple[AllocationLog, str]] = field(default_factory=list)


_CURRENT: ContextVar[Recording | None] = ContextVar("recording", default=None)


@contextmanager
def recording(*, stacks: bool = False) -> Iterator[Recording]:
    """Every measurement and prediction inside also hands its log to the yielded `Recording`.

    Args:
        stacks: Keep the whole stack of every allocation; slower.
    """
    current = Recording(stacks=stacks)
    token = _CURRENT.set(current)
    try:
        yield current
    finally:
        _CURRENT.reset(token)


def records_stacks() -> bool:
    """Whether a trace that starts now is to keep stacks."""
    current = _CURRENT.get()
    return current is not None and current.stacks


def record_log(log: AllocationLog, device: str) -> None:
    """Hand a finished log to the recording, if there is one."""
    current = _CURRENT.get()
    if current is not None:
        current.logs.append((log, device))
