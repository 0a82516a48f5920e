"""Measure the training steps of a run that does not say where they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch

from frostline.memory.measurement import allocator_counters
from frostline.memory.recording import record_log, records_stacks
from frostline.memory.report import build_report
from frostline.patches import wrapped
from frostline.records import AllocatorCounters, MemoryReport
from frostline.tracing.run import RunTrace
from frostline.tracing.steps import StepWatch

_PATIENCE = 8
"""How many steps more, and how many times as many, to wait for an optimizer that has not stepped yet."""
_OTHERS = "other processes and threads: loader workers, and batches that wait unread"

_COMPILED = "what torch.compile changes: under the trace, compiled functions run uncompiled"


@dataclass(frozen=True)
class _Step:
    """Where a step ended in the log, and whether its optimizers stepped together for the first time."""

    end: int
    num_ops: int
    first: bool


class MeasuredRun:
    """Trace a run from its birth until enough of its training steps are seen.

    Steps that end in the same optimizers are of one phase (a GAN has two). The first of each phase is a warm-up:
    it makes the optimizer state. The steps after it count.

    Args:
        num_steps: Steps of each phase to see. With 1 the first step counts, without optimizer state.
        stop: Called when they are seen; it must raise, and is called again at the next step should that be caught.
    """

    def __init__(self, num_steps: int, stop: Callable[[], None]) -> None:
        self._num_steps, self._stop = num_steps, stop
        self._trace = RunTrace(stacks=records_stacks())
        self._steps: list[_Step] = []
        self._phases: Counter[frozenset[int]] = Counter()
        self._begin: _Step | None = None
        self._last = _Step(0, 0, False)
        self._enough = self._closing = self._failed = False
        self._allocator: AllocatorCounters | None = None
        self._not_seen = [_OTHERS]
        self._cleanup = ExitStack()

    @property
    def num_steps(self) -> int:
        """Training steps that have ended."""
        return len(self._steps)

    def __enter__(self) -> MeasuredRun:
        """Start to listen."""
        with ExitStack() as stack:
            stack.enter_context(wrapped(torch, "compile", self._around_compile))
            stack.enter_context(self._trace)
            # Hooks run in the order they were set: a step has ended before the module that ends it is noted down.
            stack.enter_context(StepWatch(began=self._step_begins, ended=self._step_ended))
            self._cleanup = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Stop listening; an ordinary exception makes the step it broke off count."""
        self._closing = True
        self._failed = kind is not None and issubclass(kind, Exception)
        self._trace.examine()
        self._read_allocator()
        self._cleanup.close()
        self._last = self._here()

    def report(self) -> MemoryReport:
        """Where the bytes of the steps that count go, or of the whole run if there were none."""
        log, device = self._trace.log, self._device()
        start, end, covers = self._range()
        del log.events[end.end :]
        log.step_start, log.num_ops = start.end, end.num_ops - start.num_ops
        record_log(log, device)
        return build_report(
            log, device, "measured", not_seen=tuple(self._not_seen), allocator=self._allocator, covers=covers
        )

    def _step_begins(self) -> None:
        if self._begin is None:
            self._begin = self._here()

    def _step_ended(self, optimizers: tuple[torch.optim.Optimizer, ...]) -> None:
        if not self._enough:
            phase = frozenset(map(id, optimizers))
            self._phases[phase] += bool(optimizers)  # a skipped update makes no state
            self._steps.append(self._here(first=self._phases[phase] <= 1))
            self._enough = self._seen_enough(self._trace.examine())
            if self._enough:
                self._read_allocator()
            elif self._steps[-1].first and torch.cuda.is_initialized():
                torch.cuda.reset_peak_memory_stats()
        if self._enough and not self._closing:
            self._stop()

    def _seen_enough(self, optimizers: tuple[torch.optim.Optimizer, ...]) -> bool:
        stepped = frozenset().union(*(phase for phase, count in self._phases.items() if count))
        every = all(count >= self._num_steps for count in self._phases.values() if count) and bool(stepped)
        waits = {id(optimizer) for optimizer in optimizers} - stepped  # a critic may step often before a generator
        num_steps = len(self._steps)
        if num_steps >= self._num_steps * 2 * _PATIENCE:
            return True
        return every and (not waits or num_steps >= self._num_steps + _PATIENCE)

    def _here(self, *, first: bool = False) -> _Step:
        return _Step(len(self._trace.log.events), self._trace.log.num_ops, first)

    def _range(self) -> tuple[_Step, _Step, str]:
        """From where to where the log counts, and how to say so."""
        num_steps = len(self._steps)
        if not num_steps:
            return _Step(0, 0, False), self._last, "the whole run: no training step ended"
        broken = self._failed and not self._enough
        end = self._last if broken else self._steps[-1]
        after = f" and what failed after step {num_steps}" if broken else ""
        num_warm = 1 + max((i for i, step in enumerate(self._steps) if step.first), default=-1)
        if self._num_steps > 1 and (0 < num_warm < num_steps or broken):
            whole = _numbers(num_warm + 1, num_steps) if num_warm < num_steps else ""
            return self._steps[num_warm - 1], end, (whole + after).removeprefix(" and ")
        assert self._begin is not None
        return self._begin, end, f"{_numbers(1, num_steps)}{after}, with the making of optimizer state"

    def _around_compile(self, compile_: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(compile_)
        def noted(*args: Any, **kwargs: Any) -> Any:
            if _COMPILED not in self._not_seen:
                self._not_seen.append(_COMPILED)
            return compile_(*args, **kwargs)

        return noted

    def _device(self) -> str:
        """CUDA if the run put anything there."""
        return "cuda" if any(a.device == "cuda" for a in self._trace.log.allocations) else "cpu"

    def _read_allocator(self) -> None:
        if self._allocator is None and torch.cuda.is_initialized():
            self._allocator = allocator_counters()


def _numbers(first: int, last: int) -> str:
    return f"training step {first}" if first == last else f"training steps {first} to {last}"
