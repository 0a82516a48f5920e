"""How many bytes one step needs, predicted on fake tensors: for this machine's CPU, or for CUDA."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)

from frostline.errors import StepError
from frostline.memory.batches import estimate_by_batches
from frostline.memory.caching_allocator import simulate_allocator
from frostline.memory.device import CudaIsHere, as_cuda, cuda_model
from frostline.memory.measurement import Workload, trace_step
from frostline.memory.recording import record_log
from frostline.memory.report import build_report
from frostline.records import MemoryReport
from frostline.tracing import FakeTensors, build_fake, fake_tensors
from frostline.tracing.disguise import taken_for_real

_MEASURE = "measure a real step, or give workload_for_batch and batch_size: two small real batches then tell"


def estimate(
    build_model: Callable[[], nn.Module],
    build_workload: Callable[[nn.Module], Workload],
    *,
    device: Literal["cpu", "cuda"] = "cpu",
    bound: int | None = None,
    workload_for_batch: Callable[[int], Workload] | None = None,
    batch_size: int | None = None,
    small_batches: tuple[int, int] = (8, 16),
) -> MemoryReport:
    """What `measure` would say, without the memory: no weights, no activations, no GPU.

    For CUDA the tensors still lie on the CPU, but CUDA's kernels, optimizers and allocator are modelled; what that
    takes for granted stands in the report. A step whose memory fake tensors cannot tell is refused, or predicted
    from two small real batches where a way to make them is given.

    Args:
        build_model: Makes the model; it is built without values.
        build_workload: Makes inputs, optimizers and step for it; it runs where all tensors are fake.
        device: For which device.
        bound: The most entries that an operator returns whose size depends on values, such as `torch.nonzero` or
            an index that is a mask. It is taken to return so many, or as many as it can.
        workload_for_batch: Makes a real workload for a batch size; see `estimate_by_batches`.
        batch_size: The one that counts there.
        small_batches: The two that are run there.

    Raises:
        StepError: The step's sizes depend on values, or a module's real kernel is unlike its fake one.
    """
    if (workload_for_batch is None) != (batch_size is None):
        raise StepError("workload_for_batch and batch_size go together", do="give both, or neither")
    try:
        return _on_fake_tensors(build_model, build_workload, device, bound)
    except StepError as refusal:
        if workload_for_batch is None or batch_size is None:
            raise
        report = estimate_by_batches(workload_for_batch, target=batch_size, small=small_batches, reason=refusal.what)
        if report.device != device:
            raise StepError(
                f"{refusal.what}, and the small batches ran on {report.device}, not on {device}", do=refusal.do
            ) from refusal
        return report


def _on_fake_tensors(
    build_model: Callable[[], nn.Module],
    build_workload: Callable[[nn.Module], Workload],
    device: Literal["cpu", "cuda"],
    bound: int | None,
) -> MemoryReport:
    """Predict; where the step fails and has asked for truth values (``if ids.max() >= size: raise``), deny them."""
    mode = fake_tensors(bound=bound)
    try:
        return _predict(build_model, build_workload, device, mode)
    except StepError:
        raise
    except Exception as error:
        if not mode.num_truths:
            raise
        first = error
    try:
        return _predict(build_model, build_workload, device, fake_tensors(bound=bound, truth=False))
    except StepError:
        raise
    except Exception:
        raise first from None


def _predict(
    build_model: Callable[[], nn.Module],
    build_workload: Callable[[nn.Module], Workload],
    device: Literal["cpu", "cuda"],
    mode: FakeTensors,
) -> MemoryReport:
    on_cuda = device == "cuda"
    with CudaIsHere("meta") if on_cuda else ExitStack():
        model = build_fake(build_model, mode)
    with ExitStack() as stack:
        cuda = stack.enter_context(cuda_model()) if on_cuda else None
        stack.enter_context(mode)
        stack.enter_context(taken_for_real())
        stack.enter_context(_reasons())
        workload = build_workload(model)
        _refuse_recurrent(workload.model, device)
        log, _ = trace_step(workload)
    guesses = (f"{text} ({count} times)" for text, count in mode.guesses.items())
    if cuda is not None:
        as_cuda(log)
    record_log(log, device)
    return build_report(
        log,
        device,
        "predicted",
        not_seen=(*workload.not_seen, *guesses),
        assumes=cuda.assumptions() if cuda is not None else (),
        allocator=simulate_allocator(log, device) if cuda is not None else None,
    )


@contextmanager
def _reasons() -> Iterator[None]:
    """Say why fake tensors do not do."""
    try:
        yield
    except DynamicOutputShapeException as error:
        raise StepError(
            f"the size of what {error.func} returns depends on values, which fake tensors do not have",
            do="give bound=N, the most entries it returns, or " + _MEASURE,
        ) from error
    except DataDependentOutputException as error:
        raise StepError(f"{error.func} asks for values, which fake tensors do not have", do=_MEASURE) from error
    except (UnsupportedFakeTensorException, UnsupportedOperatorException) as error:
        raise StepError(f"fake tensors do not know what happens here: {error}", do=_MEASURE) from error


def _refuse_recurrent(model: nn.Module, device: str) -> None:
    for name, module in model.named_modules():
        if not isinstance(module, nn.RNNBase):
            continue
        kind = type(module).__name__
        where = name or kind
        if device == "cuda":
            raise StepError(
                f"{kind} runs in a cuDNN kernel that keeps as much as it likes for backward", where=where, do=_MEASURE
            )
        # GRU, RNN, projections and float64 have no oneDNN kernel for training: fake and real are the same there.
        plain = module.proj_size or next(module.parameters()).dtype is torch.float64
        if isinstance(module, nn.LSTM) and not plain:
            raise StepError(
                f"{kind} runs in a oneDNN kernel on the CPU that keeps far more memory than its fake twin tells",
                where=where,
                do=_MEASURE,
            )
