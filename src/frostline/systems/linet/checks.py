"""What `prove` checks of a LINet beside its plan, in float64 on a few samples that lack streams."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from frostline.proof import Gradients, compare_gradients, gradients_of, noise_floor
from frostline.proof.compare import compare_states
from frostline.records import ProofCheck, ProofReport
from frostline.systems.linet.budget import treatments
from frostline.systems.linet.network import LINet
from frostline.systems.linet.reference import Masking, plain_logits
from frostline.systems.linet.treatment import Treatment

_NUM_SAMPLES = 8
_Forward = Callable[[LINet, Sequence[Tensor], Tensor], Tensor]


@dataclass(frozen=True)
class _Outcome:
    """What a step computed and left behind."""

    logits: Tensor
    gradients: Gradients
    buffers: Gradients


def check_network(model: LINet, image_size: int) -> tuple[ProofCheck, ...]:
    """The four published checks, every treatment, and why plain checkpointing is refused.

    Each step is compared with the plain one, in which every stream runs on every sample, masks multiply out of place
    and nothing is recomputed; see `plain_logits`. Random numbers outside are left alone.

    Args:
        model: A copy of it runs, in training mode without dropout.
        image_size: Height and width of the random images.
    """
    rig = _Rig(model, image_size)
    plain = rig.run(plain_logits)
    floor = noise_floor(plain.gradients, rig.run(plain_logits, backwards=True).gradients)
    compare = partial(_compare, plain, floor=floor)
    return (
        *_published(rig, compare),
        *_variants(rig, compare),
        _checkpointing(rig, compare),
    )


class _Rig:
    """A network in float64, and samples each of which lacks at most one stream."""

    def __init__(self, model: LINet, image_size: int) -> None:
        self.model = copy.deepcopy(model).to("cpu", torch.float64).train()
        self.model.dropout.p, self.model.treatment = 0.0, Treatment()
        generator = torch.Generator().manual_seed(0)
        draw = partial(torch.randn, dtype=torch.float64, generator=generator)
        channels = [weight.shape[1] for weight in self.model.conv1.stream_weights]
        self.streams = [draw(_NUM_SAMPLES, number, image_size, image_size) for number in channels]
        self.labels = torch.randint(self.model.fc.out_features, (_NUM_SAMPLES,), generator=generator)
        self.availability = torch.ones(_NUM_SAMPLES, len(channels), dtype=torch.bool)
        if len(channels) > 1:
            self.availability.fill_diagonal_(False)

    def run(self, forward: _Forward, *, backwards: bool = False, blank: float | None = None) -> _Outcome:
        """A step from the same values, of the samples in order or backwards; `blank` stands where data is missing."""
        model = copy.deepcopy(self.model)
        tensors = [*self.streams, self.availability, self.labels]
        *streams, availability, labels = (t.flip(0) for t in tensors) if backwards else tensors
        if blank is not None:
            there = [availability[:, index].view(-1, 1, 1, 1) for index in range(len(streams))]
            streams = [stream.where(mask, blank) for stream, mask in zip(streams, there, strict=True)]
        logits = forward(model, streams, availability)
        F.cross_entropy(logits, labels).backward()
        return _Outcome(logits.detach(), gradients_of(model), dict(model.named_buffers()))


def _compare(plain: _Outcome, other: _Outcome, *, floor: float) -> ProofReport:
    report = compare_gradients(plain.gradients, other.gradients, floor=floor)
    return compare_states(report, plain.buffers, other.buffers, same_random_state=True)


def _published(rig: _Rig, compare: Callable[[_Outcome], ProofReport]) -> Iterator[ProofCheck]:
    halves: tuple[tuple[str, Masking], ...] = (("in-place masks", "masks"), ("indexing", "writes"))
    for name, masking in halves:
        report = compare(rig.run(partial(plain_logits, masking=masking)))
        yield ProofCheck(name=name, verdict=report.proof_class, text=_text(report))
    blanked, plain = rig.run(_own, blank=float("nan")), rig.run(plain_logits)
    num_missing = int((~rig.availability).sum())
    logits = compare_gradients({"logits": plain.logits}, {"logits": blanked.logits})
    yield ProofCheck(
        name="forward with dropout",
        verdict=logits.proof_class,
        text=f"the logits of {_NUM_SAMPLES} samples, of which {num_missing} lack a stream: NaN there is never read",
    )
    arrived = [g is not None and bool(g.any()) and bool(g.isfinite().all()) for g in blanked.gradients.values()]
    report = compare(blanked)
    yield ProofCheck(
        name="gradient flow",
        verdict=report.proof_class if all(arrived) else "none",
        text=f"{sum(arrived)} of {len(arrived)} parameters get a gradient that is finite and not zero",
    )


def _variants(rig: _Rig, compare: Callable[[_Outcome], ProofReport]) -> Iterator[ProofCheck]:
    after = compare(rig.run(partial(plain_logits, masking="after")))
    yield ProofCheck(name="published optimisation", verdict=after.proof_class, text=_text(after))
    for treatment in treatments(rig.model):
        report = compare(rig.run(partial(_own, treatment=treatment)))
        name = "compact streams" if treatment == Treatment() else str(treatment)
        yield ProofCheck(name=name, verdict=report.proof_class, text=_text(report))


def _checkpointing(rig: _Rig, compare: Callable[[_Outcome], ProofReport]) -> ProofCheck:
    report = compare(rig.run(partial(plain_logits, checkpointed=True)))
    same, num = _statistics(report)
    changed = num - same
    if not changed:
        return ProofCheck(name="torch's checkpoint per block", verdict=report.proof_class, text=_text(report))
    return ProofCheck(
        name="torch's checkpoint per block",
        verdict="refused",
        text=f"{changed} of {num} statistics change, for each block runs twice and so updates them twice;"
        f" {_gradients(report)}",
    )


def _own(model: LINet, streams: Sequence[Tensor], availability: Tensor, treatment: Treatment | None = None) -> Tensor:
    model.treatment = treatment or Treatment()
    logits: Tensor = model(streams, availability)
    return logits


def _text(report: ProofReport) -> str:
    same, num = _statistics(report)
    return f"{_gradients(report)}; {same} of {num} statistics bit by bit"


def _statistics(report: ProofReport) -> tuple[int, int]:
    """How many of the normalisations' buffers are the same, of how many."""
    equal = [b.equal for b in report.buffers if "running_" in b.name or "num_batches_tracked" in b.name]
    return sum(equal), len(equal)


def _gradients(report: ProofReport) -> str:
    num, equal = len(report.per_parameter), sum(difference.equal for difference in report.per_parameter)
    worst = "" if report.worst is None or equal == num else f", the others to {report.worst.max_relative:.1e}"
    return f"{equal} of {num} gradients bit by bit{worst}"
