"""Run a step under trial treatments, on fake tensors where that is possible."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from frostline.errors import PlanError
from frostline.memory import Workload
from frostline.memory.analysis import describe, live_bytes
from frostline.memory.report import build_report
from frostline.planner.guard import no_fakes_left, no_step_skipped
from frostline.planner.installation import install_
from frostline.planner.trace import Mark, StepTrace, TwinTensors
from frostline.records import MemoryReport, Treatment
from frostline.regions import rehearsal
from frostline.tracing import AllocationLog, FakeTensors


@dataclass(frozen=True)
class Run:
    """What one run of the step showed.

    Attributes:
        log: Of allocations.
        marks: Where each unit ran.
        work: Of the whole step.
        device: The device type that is planned.
        method: Whether the tensors were real.
    """

    log: AllocationLog
    marks: tuple[Mark, ...]
    work: int
    device: str
    method: Literal["predicted", "measured"]

    @cached_property
    def live(self) -> list[int]:
        """Bytes alive at the start of the step and after each event."""
        return live_bytes(self.log, self.device)

    @property
    def peak_bytes(self) -> int:
        """The most that was alive."""
        return max(self.live)

    @property
    def peak_at(self) -> str:
        """The phase, module and operator that reaches the peak."""
        num_events = self.live.index(self.peak_bytes)
        number, _ = self.log.events[self.log.step_start + num_events - 1]
        return describe(self.log.allocations[number]) if num_events else "before the step"

    def report(self) -> MemoryReport:
        """Where the bytes are at the peak."""
        return build_report(self.log, self.device, self.method)


class Runner:
    """Runs a workload again and again from one state; between `opened` and its end only.

    Attributes:
        method: ``predicted`` on fake tensors, ``measured`` on real ones.
        notes: What the numbers do not count, or why fake tensors did not do.
    """

    def __init__(self, workload: Workload, units: Mapping[str, nn.Module]) -> None:
        self._workload, self._units = workload, units
        self._twins: TwinTensors | None = None
        self._mode: FakeTensorMode | None = _fake_mode(workload.model)
        self.device = next((parameter.device.type for parameter in workload.model.parameters()), "cpu")
        self.method: Literal["predicted", "measured"] = "predicted"
        self.notes: tuple[str, ...] = ()

    @contextmanager
    def opened(self) -> Iterator[Runner]:
        """Warm the step up; afterwards model and optimizers are as they were.

        A step that fake tensors cannot run is really run, and `notes` says so.
        """
        with ExitStack() as stack:
            reason = self._warm_up_fake(stack)
            if reason:
                stack.close()
                self.method, self._twins, self._mode = "measured", None, None
                self.notes = (f"counted in real runs of the step, for {reason}",)
                stack.enter_context(rehearsal(self._workload.model, self._workload.optimizers))
                self._workload.step()
            yield self
        if isinstance(self._mode, FakeTensors):
            self.notes = tuple(f"{text} ({count} times)" for text, count in self._mode.guesses.items())

    def run(self, treatments: tuple[Treatment, ...] = ()) -> Run:
        """One step under some treatments."""
        handles = install_(self._workload.model, treatments)
        try:
            trace = StepTrace(self._workload, self._units, self._twins)
            with trace:
                trace.begin_step()
                self._workload.step()
            return Run(trace.log, tuple(trace.marks), trace.work, self.device, self.method)
        finally:
            for handle in reversed(handles):
                handle.remove()

    def _warm_up_fake(self, stack: ExitStack) -> str:
        """Why the step cannot be run on fake tensors; empty where it can, and then it has run once."""
        model = self._workload.model
        built_fake = self._mode is not None
        if any(isinstance(module, nn.LSTM) for module in model.modules()) and self.device == "cpu":
            reason = "an LSTM keeps far more memory on the CPU than its fake twin tells"
            if built_fake:
                raise PlanError(reason, do="plan a step on a real model")
            return reason
        stack.enter_context(rehearsal(model, self._workload.optimizers, real=False))
        stack.enter_context(no_fakes_left(model, self._workload.step) if not built_fake else nullcontext())
        stack.enter_context(no_step_skipped())
        if self._mode is None:
            self._mode = self._twins = TwinTensors()
        stack.enter_context(self._mode)
        try:
            self._workload.step()
        except Exception as error:
            if built_fake:
                raise
            return f"fake tensors cannot run it ({type(error).__name__}: {str(error).partition(chr(10))[0][:120]})"
        return ""


def _fake_mode(model: nn.Module) -> FakeTensorMode | None:
    """The mode that a model built without values belongs to."""
    return next((p.fake_mode for p in model.parameters() if isinstance(p, FakeTensor)), None)


def is_fake_tensor(tensor: Tensor) -> bool:
    """Whether a tensor has no values."""
    return isinstance(tensor, FakeTensor)


def is_fake(model: nn.Module) -> bool:
    """Whether a model was built without values."""
    return _fake_mode(model) is not None
