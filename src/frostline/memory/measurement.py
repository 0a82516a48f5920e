"""How many bytes one step needs: measured on real tensors, predicted on fake ones."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException

from frostline.errors import StepError
from frostline.memory.recording import record_log, records_stacks
from frostline.memory.report import build_report
from frostline.records import AllocatorCounters, MemoryReport
from frostline.regions import preserved
from frostline.tracing import AllocationLog, MemTrace, build_fake, fake_tensors


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A step and what it works on.

    Attributes:
        step: One whole training step: forward, backward, optimizer and `zero_grad` wherever it belongs.
        model: Its modules name the places in the report.
        optimizers: All that the step steps.
        inputs: Any pytree of the tensors the step is given.
    """

    step: Callable[[], object]
    model: nn.Module
    optimizers: tuple[torch.optim.Optimizer, ...] = ()
    inputs: object = ()


def measure(
    step: Callable[[], object],
    model: nn.Module,
    *,
    optimizers: Iterable[torch.optim.Optimizer] = (),
    inputs: object = (),
    warmup_steps: int = 1,
) -> MemoryReport:
    """Run one real step and say where its bytes go; model and optimizers are afterwards as they were.

    Every storage is counted once, at the size its kernel asked for; an allocator rounds up. What a checkpoint
    recomputes in backward is temporary, not saved. On CUDA the allocator's own counters stand beside it.

    Args:
        step: One whole training step; see `Workload`.
        model: Its modules name the places in the report.
        optimizers: All that the step steps.
        inputs: Any pytree of the tensors the step is given; what it reads besides is found by itself.
        warmup_steps: Steps before the one that counts; the first step of an optimizer makes its state.
    """
    workload = Workload(step=step, model=model, optimizers=tuple(optimizers), inputs=inputs)
    log, allocator = _trace(workload, warmup_steps)
    return build_report(log, _device(model), "measured", allocator=allocator)


def estimate(build_model: Callable[[], nn.Module], build_workload: Callable[[nn.Module], Workload]) -> MemoryReport:
    """What `measure` would say on this machine's CPU, without the memory: no weights, no activations.

    Args:
        build_model: Makes the model; it is built without values.
        build_workload: Makes inputs, optimizers and step for it; it runs where all tensors are fake.

    Raises:
        StepError: The step's sizes depend on values, or a module's real kernel is unlike its fake one.
    """
    mode = fake_tensors()
    model = build_fake(build_model, mode)
    with mode:
        workload = build_workload(model)
        _refuse_lstm(workload.model)
        try:
            log, allocator = _trace(workload, warmup_steps=1)
        except DynamicOutputShapeException as error:
            raise StepError(
                f"the size of what {error.func} returns depends on values, which fake tensors do not have",
                do="measure a real step instead",
            ) from error
    guesses = tuple(f"{text} ({count} times)" for text, count in mode.guesses.items())
    return build_report(log, _device(workload.model), "predicted", not_seen=guesses, allocator=allocator)


def _trace(workload: Workload, warmup_steps: int) -> tuple[AllocationLog, AllocatorCounters | None]:
    on_cuda = _device(workload.model) == "cuda"
    with preserved(workload.model, workload.optimizers):
        trace = MemTrace(workload.model, workload.optimizers, workload.inputs, stacks=records_stacks())
        with trace:
            for _ in range(warmup_steps):
                workload.step()
            gc.collect()  # cycles left by the warm-up are not the step's
            if on_cuda:
                torch.cuda.reset_peak_memory_stats()
            trace.begin_step()
            workload.step()
        record_log(trace.log, _device(workload.model))
        return trace.log, allocator_counters() if on_cuda else None


def allocator_counters() -> AllocatorCounters:
    """What CUDA's allocator has counted since its peaks were last reset."""
    return AllocatorCounters(
        peak_allocated_bytes=torch.cuda.max_memory_allocated(),
        peak_reserved_bytes=torch.cuda.max_memory_reserved(),
    )


def _device(model: nn.Module) -> str:
    return next((parameter.device.type for parameter in model.parameters()), "cpu")


def _refuse_lstm(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.LSTM):
            raise StepError(
                "LSTM runs in a oneDNN kernel on the CPU that keeps far more memory than its fake twin tells",
                where=name or type(module).__name__,
                do="measure a real step instead",
            )
