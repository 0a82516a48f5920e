"""How many bytes one step needs, measured on real tensors."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from frostline.memory.recording import record_log, records_stacks
from frostline.memory.report import build_report
from frostline.records import AllocatorCounters, MemoryReport
from frostline.regions import optimizers_of, rehearsal
from frostline.tracing import AllocationLog, MemTrace


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A step and what it works on.

    Attributes:
        step: One whole training step: forward, backward, optimizer and `zero_grad` wherever it belongs.
        model: Its modules name the places in the report.
        optimizers: All that the step steps.
        inputs: Any pytree of the tensors the step is given.
        not_seen: What a prediction from this step does not count, beside what none does; lines of the report.
    """

    step: Callable[[], object]
    model: nn.Module
    optimizers: tuple[torch.optim.Optimizer, ...] = ()
    inputs: object = ()
    not_seen: tuple[str, ...] = ()


def measure(
    step: Callable[[], object],
    model: nn.Module,
    *,
    optimizers: Iterable[torch.optim.Optimizer] | torch.optim.Optimizer = (),
    inputs: object = (),
    warmup_steps: int = 1,
) -> MemoryReport:
    """Run one real step and say where its bytes go; all is afterwards as it was, see `rehearsal`.

    Every storage is counted once, at the size its kernel asked for; an allocator rounds up. What a checkpoint
    recomputes in backward is temporary, not saved. On CUDA the allocator's own counters stand beside it.

    Args:
        step: One whole training step; see `Workload`.
        model: Its modules name the places in the report.
        optimizers: All that the step steps.
        inputs: Any pytree of the tensors the step is given; what it reads besides is found by itself.
        warmup_steps: Steps before the one that counts; the first step of an optimizer makes its state.
    """
    workload = Workload(step=step, model=model, optimizers=optimizers_of(optimizers), inputs=inputs)
    log, allocator = trace_step(workload, warmup_steps)
    device = device_type(model)
    record_log(log, device)
    return build_report(log, device, "measured", allocator=allocator)


def trace_step(workload: Workload, warmup_steps: int = 1) -> tuple[AllocationLog, AllocatorCounters | None]:
    """The log of one step after some others, and what CUDA's allocator counted if the model lies there.

    Model and optimizers are afterwards as they were.
    """
    on_cuda = device_type(workload.model) == "cuda"
    with rehearsal(workload.model, workload.optimizers):
        trace = MemTrace(workload.model, workload.optimizers, workload.inputs, stacks=records_stacks())
        with trace:
            for _ in range(warmup_steps):
                workload.step()
            gc.collect()  # cycles left by the warm-up are not the step's
            if on_cuda:
                torch.cuda.reset_peak_memory_stats()
            trace.begin_step()
            workload.step()
        return trace.log, allocator_counters() if on_cuda else None


def allocator_counters() -> AllocatorCounters:
    """What CUDA's allocator has counted since its peaks were last reset."""
    return AllocatorCounters(
        peak_allocated_bytes=torch.cuda.max_memory_allocated(),
        peak_reserved_bytes=torch.cuda.max_memory_reserved(),
    )


def device_type(model: nn.Module) -> str:
    """Where a model's parameters lie."""
    return next((parameter.device.type for parameter in model.parameters()), "cpu")
