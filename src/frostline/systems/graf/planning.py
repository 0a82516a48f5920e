"""graf's one treatment, how many rays go through the field at once: chosen for a budget, as a plan, and proved."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from torch import Tensor

from frostline.errors import BudgetError, PlanError
from frostline.memory import Workload
from frostline.planner.running import Run, Runner
from frostline.proof import Gradients, gradients_of, prove_step
from frostline.records import Plan, ProofReport, Treatment
from frostline.systems.graf.batches import Batch
from frostline.systems.graf.config import GrafConfig
from frostline.systems.graf.model import GrafModel
from frostline.systems.graf.system import graf_phases
from frostline.tracing import build_fake, fake_tensors
from frostline.units import format_bytes, parse_bytes

_UNIT, _KIND, _RAYS = "generator", "chunk-rays", "rays"
_FEWEST, _MOST = 8, 2**20


def plan_chunks(
    build_model: Callable[[], GrafModel], build_workload: Callable[[Any], Workload], config: GrafConfig
) -> Plan:
    """The most rays at once with which a step stays within `memory.budget`.

    Nothing is computed: the step is traced on fake tensors with some numbers of rays, the large ones first.

    Args:
        build_model: Makes both players.
        build_workload: Makes a step of them.
        config: With the budget; without one, the configured number is priced.

    Raises:
        BudgetError: None fits.
    """
    budget = config.memory.budget
    with _traces(build_model, build_workload) as (model, trace):
        ladder = [0, *_numbers(model.generator.sampler.size**2 * config.training.batch_size)]
        if not budget:
            chunk_rays = config.system.rendering.chunk_rays
        else:
            limit = 0 if budget == "smallest" else parse_bytes(budget)
            chunk_rays = _most(ladder, lambda rays: trace(rays).peak_bytes, limit)
            smallest = trace(chunk_rays)
            if smallest.peak_bytes > limit > 0:
                raise BudgetError(
                    f"no plan fits {budget}: the smallest peak is {format_bytes(smallest.peak_bytes)},"
                    f" at {smallest.peak_at}",
                    smallest_bytes=smallest.peak_bytes,
                    do="raise the budget, or take a smaller batch, discriminator or field",
                )
        chosen, plain = trace(chunk_rays), trace(0)
        keep = Treatment(unit=_UNIT, kind="keep")
        return Plan(
            treatments=(Treatment(unit=_UNIT, kind=_KIND, arguments={_RAYS: chunk_rays}) if chunk_rays else keep,),
            budget_bytes=0 if budget in ("", "smallest") else parse_bytes(budget),
            predicted_peak_bytes=chosen.peak_bytes,
            resident_bytes=chosen.live[0],
            baseline_peak_bytes=plain.peak_bytes,
            predicted_cost=chosen.work / max(1, plain.work) - 1,
            proof_class="ROUNDING" if chunk_rays else "EXACT",
            method="predicted",
            peak_at=chosen.peak_at,
            notes=("a step of both players, with the discriminator's penalty",),
        )


def chunk_rays_of(plan: Plan) -> int:
    """What a plan of `plan_chunks` does; 0 is all rays at once.

    Raises:
        PlanError: It is of another kind.
    """
    for each in plan.treated:
        if (each.unit, each.kind) != (_UNIT, _KIND):
            raise PlanError(f"the plan is for another model: graf has no {each}", do="make one with `plan graf`")
    return next((each.arguments.get(_RAYS, 0) for each in plan.treated), 0)


def prove_chunks(model: GrafModel, config: GrafConfig, batch: Batch, chunk_rays: int) -> ProofReport:
    """Compare both players' gradients under a plan with those of all rays at once; in float64 for the noise floor.

    Optimizers do not step in between: Adam's first update is a sign, and would turn rounding into a difference.

    Args:
        model: Is afterwards as it was.
        config: Of the run.
        batch: On the model's device.
        chunk_rays: Rays at once.
    """

    def gradients(model: GrafModel, chunk_rays: int) -> Callable[[], Tensor]:
        phases = graf_phases(model, config, batch.classes.device)

        def step() -> Tensor:
            with _chunked(model, chunk_rays):
                losses = []
                for phase in phases:
                    with phase.autocast():
                        losses.append(phase.loss(batch).total)
                    losses[-1].backward()
            return sum(loss.detach().float() for loss in losses)  # type: ignore[return-value]

        return step

    def reference() -> Gradients:
        wide = copy.deepcopy(model).double()
        for field in (wide.generator.field, wide.generator.coarse_field):
            if field is not None:
                field.precision = "32-true"
        gradients(wide, 0)()
        return gradients_of(wide)

    return prove_step(gradients(model, 0), gradients(model, chunk_rays), model, reference=reference)


@contextmanager
def _chunked(model: GrafModel, chunk_rays: int) -> Iterator[None]:
    generator = model.generator
    before = generator.chunk_rays, generator.recompute
    model.set_chunk_rays_(chunk_rays)
    try:
        yield
    finally:
        generator.chunk_rays, generator.recompute = before


@contextmanager
def _traces(
    build_model: Callable[[], GrafModel], build_workload: Callable[[Any], Workload]
) -> Iterator[tuple[GrafModel, Callable[[int], Run]]]:
    """The model, and its step by the number of rays at once, traced once each."""
    mode = fake_tensors()
    model = build_fake(build_model, mode)
    model.set_chunk_rays_(0)  # the warm-up has the fewest operators then
    with mode, Runner(build_workload(model), {}).opened() as runner:

        @cache
        def trace(chunk_rays: int) -> Run:
            model.set_chunk_rays_(chunk_rays)
            return runner.run()

        yield model, trace


def _most(ladder: list[int], peak: Callable[[int], int], limit: int) -> int:
    """The first number whose peak is within a limit, or else the first with the smallest peak.

    Tracing takes as long as there are chunks. Where half as many rays save nothing, the peak is elsewhere by now.
    """
    tried: list[int] = []
    for rays in ladder:
        tried.append(rays)
        if peak(rays) <= limit or (len(tried) > 2 and peak(rays) >= peak(tried[-2])):
            break
    return rays if peak(rays) <= limit else min(tried, key=peak)


def _numbers(num_rays: int) -> list[int]:
    """Powers of two below the number of rays, the largest first."""
    numbers = [_FEWEST]
    while 2 * numbers[-1] < min(num_rays, _MOST):
        numbers.append(2 * numbers[-1])
    return numbers[::-1]
