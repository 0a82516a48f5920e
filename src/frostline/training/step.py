"""One step of one phase: however many micro-batches, one update."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from frostline.errors import StepError
from frostline.records import StepRecord
from frostline.training.group import Group
from frostline.training.loading import Batch
from frostline.training.phase import Phase

_TOTAL = ""  # its key beside the terms, which have names


def bare_step(phases: Sequence[Phase], micro_batches: Sequence[Batch]) -> Callable[[], Tensor]:
    """What a step is made of, to be measured, audited and planned: no scaler, no clipping, no exchange, no record.

    Args:
        phases: One behind another, each with losses, backwards and an update of its optimizers.
        micro_batches: Whose gradients add up in every phase.

    Returns:
        A function that makes the step and returns the last loss, without its graph.
    """

    def step() -> Tensor:
        for phase in phases:
            for batch in micro_batches:
                with phase.autocast():
                    loss = phase.loss(batch)
                loss.total.backward()
            for optimizer in phase.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        return loss.total.detach()

    return step


def run_step(phase: Phase, micro_batches: Sequence[Batch], group: Group) -> StepRecord:
    """Make one update from the gradient of the weighted mean over the global batch.

    With the weights w_i of the micro-batches of all processes, the gradient is sum_i (w_i / W) grad(mean_i):
    that of one large batch, also where micro-batches hold different numbers of target tokens. Against the
    large batch it is ROUNDING; with one micro-batch on one process it is the plain step's, EXACT.

    The host waits for the device once, at the end (and where fp16 asks whether to skip). When the loss or its
    backward fails, for want of memory say, gradients are released and the phase is as it was; buffers that the
    forward changed and random numbers are the caller's to put back.

    Args:
        phase: Its optimizers step and its counters advance.
        micro_batches: This process's; one of weight 0 is left out.
        group: All processes call this together.

    Returns:
        The step's record, without what the caller alone knows: the wait for data and, on the CPU, the peak.

    Raises:
        StepError: All weights are 0, no gradient reached the phase's parameters, or memory ran out in the update, which
            leaves it half made.
    """
    started = time.perf_counter()
    if phase.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(phase.device)
    weights = [phase.weight(batch) for batch in micro_batches]
    total_weight = group.total(sum(weights))
    if not total_weight > 0:
        raise StepError(f"phase {phase.name!r}: every micro-batch has weight 0", where=f"step {phase.step + 1}")
    learning_rate, loss_scale = phase.set_learning_rate_(), phase.scaler.get_scale()
    phase.zero_grad_()  # a GAN's other phase leaves gradients here
    try:
        means: dict[str, Tensor] = {}
        for batch, weight in zip(micro_batches, weights, strict=True):
            if weight > 0:
                _backward(phase, batch, weight / total_weight, means)
        _sum_gradients_(phase.parameters, group)
        norm = _update_whole_(phase, loss_scale)
    finally:
        phase.zero_grad_()
    gradient_norm, *values = torch.stack([norm, *means.values()]).tolist()
    totals = _sum_over_processes(dict(zip(means, values, strict=True)), group)
    skipped = phase.scaler.is_enabled() and not math.isfinite(gradient_norm)
    if phase.on_update is not None and not skipped:
        phase.on_update(phase.step)
    phase.step += 1
    phase.num_skipped += skipped
    allocated, reserved, peak = _allocator_bytes(phase.device)
    return StepRecord(
        phase=phase.name,
        step=phase.step,
        loss=totals.pop(_TOTAL),
        terms=totals,
        learning_rate=learning_rate,
        gradient_norm=gradient_norm,
        loss_scale=loss_scale,
        skipped=skipped,
        num_skipped=phase.num_skipped,
        allocated_bytes=allocated,
        reserved_bytes=reserved,
        peak_bytes=peak,
        data_seconds=0.0,
        step_seconds=time.perf_counter() - started,
    )


def _backward(phase: Phase, batch: Batch, share: float, means: dict[str, Tensor]) -> None:
    with phase.autocast():
        loss = phase.loss(batch.to(phase.device, non_blocking=phase.device.type == "cuda"))
    for name, value in {_TOTAL: loss.total, **loss.terms}.items():
        part = value.detach().float() * share
        means[name] = means[name] + part if name in means else part
    if loss.total.requires_grad:  # else its gradient is 0; `_update_` complains if all of them are
        phase.scaler.scale(loss.total * share).backward()


def _sum_gradients_(parameters: list[nn.Parameter], group: Group) -> None:
    """One flat all-reduce; a gradient that only some processes have is 0 on the others."""
    if group.world_size == 1:
        return
    present = group.sum_(torch.tensor([float(parameter.grad is not None) for parameter in parameters]))
    shared = [parameter for parameter, count in zip(parameters, present.tolist(), strict=True) if count]
    if not shared:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in shared]
    flat = group.sum_(torch.cat([gradient.flatten() for gradient in gradients]))
    parts = torch.split(flat, [parameter.numel() for parameter in shared])
    for parameter, part in zip(shared, parts, strict=True):
        parameter.grad = part.view_as(parameter).to(parameter.dtype)


def _update_whole_(phase: Phase, loss_scale: float) -> Tensor:
    try:
        return _update_(phase, loss_scale)
    except torch.OutOfMemoryError as error:
        raise StepError(
            f"phase {phase.name!r}: memory ran out in the update, and some parameters may have it already: {error}",
            where=f"step {phase.step + 1}",
            do="resume from the last checkpoint, with a smaller --memory.budget",
        ) from None


def _update_(phase: Phase, loss_scale: float) -> Tensor:
    """Unscale, clip, step every optimizer, then update the scaler once; returns the norm before clipping.

    Gradients were summed before they are unscaled, so all processes see the same infinities and skip
    together; the scale is a power of two, so this order changes no bit.
    """
    fed = [o for o in phase.optimizers if any(p.grad is not None for g in o.param_groups for p in g["params"])]
    gradients = [parameter.grad for parameter in phase.parameters if parameter.grad is not None]
    if not fed:
        raise StepError(
            f"phase {phase.name!r}: no gradient reached any of its parameters",
            where=f"step {phase.step + 1}",
            do="run `frostline audit` with the same words: it names the line, a no_grad or a detach, that cuts it",
        )
    norm = get_total_norm(gradients) / loss_scale
    if phase.scaler.is_enabled():
        for gradient in gradients:  # inf * 0 is nan: the scaler judges one optimizer, a step is skipped as a whole
            gradient.add_(norm * 0)
    for optimizer in fed:
        phase.scaler.unscale_(optimizer)
    if phase.clip_norm > 0:
        clip_grads_with_norm_(phase.parameters, phase.clip_norm, norm)
    for optimizer in fed:
        phase.scaler.step(optimizer)
    phase.scaler.update()
    return norm


def _sum_over_processes(means: dict[str, float], group: Group) -> dict[str, float]:
    totals: dict[str, float] = {}
    for part in group.gather(means):
        for name, value in part.items():
            totals[name] = totals.get(name, 0.0) + value
    return totals


def _allocator_bytes(device: torch.device) -> tuple[int, int, int]:
    """Allocated, reserved and peak; the CPU has no such counters."""
    if device.type != "cuda":
        return 0, 0, 0
    return (
        torch.cuda.memory_allocated(device),
        torch.cuda.memory_reserved(device),
        torch.cuda.max_memory_allocated(device),
    )
