"""linet's treatments as a plan, and the proof of one on the run's own training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import get_args

from frostline import records
from frostline.errors import BudgetError, PlanError
from frostline.proof import prove_step
from frostline.records import Plan, ProofReport
from frostline.systems.linet.budget import Choice
from frostline.systems.linet.checks import check_network
from frostline.systems.linet.network import LINet
from frostline.systems.linet.system import LinetSystem
from frostline.systems.linet.treatment import Recompute, Treatment
from frostline.units import format_bytes, parse_bytes

_STEM, _SLICES = "conv1", "stem-slices"


def plan_of(choice: Choice, model: LINet, budget: str = "") -> Plan:
    """A choice as a plan: one treatment for the stem, and one for each block.

    Args:
        choice: From `choose_treatment`.
        model: Any network of the same blocks.
        budget: What it was made for.

    Raises:
        BudgetError: It does not fit.
    """
    if not choice.fits:
        raise BudgetError(
            f"no plan fits {budget}: the smallest peak is {format_bytes(choice.peak_bytes)}, at {choice.peak_at}",
            smallest_bytes=choice.peak_bytes,
            do="raise the budget, or take a smaller batch or network",
        )
    treatment = choice.treatment
    stem = records.Treatment(unit=_STEM, kind="keep")
    if treatment.stem_slices:
        stem = records.Treatment(unit=_STEM, kind=_SLICES, arguments={"slices": treatment.stem_slices})
    levels = {name: treatment.of(name) for name, _ in model.blocks()}
    blocks = [
        records.Treatment(unit=name, kind="keep" if level == "none" else f"recompute-{level}")
        for name, level in levels.items()
    ]
    return Plan(
        treatments=(stem, *blocks),
        budget_bytes=0 if budget in ("", "smallest") else parse_bytes(budget),
        predicted_peak_bytes=choice.peak_bytes,
        resident_bytes=choice.resident_bytes,
        baseline_peak_bytes=choice.plain_peak_bytes,
        predicted_cost=choice.extra_work,
        proof_class="EXACT",
        method="predicted",
        peak_at=choice.peak_at,
        notes=("counted with every sample having every stream: modality dropout only takes away",),
    )


def treatment_of(plan: Plan, model: LINet) -> Treatment:
    """What a plan of `plan_of` does.

    Raises:
        PlanError: It is for another network, or of another kind.
    """
    names = {name for name, _ in model.blocks()}
    slices, blocks = 0, dict[str, Recompute]()
    for each in plan.treated:
        level = next((level for level in get_args(Recompute) if each.kind == f"recompute-{level}"), None)
        if each.unit == _STEM and each.kind == _SLICES:
            slices = each.arguments.get("slices", 0)
        elif each.unit in names and level is not None:
            blocks[each.unit] = level
        else:
            raise PlanError(f"the plan is for another model: a LINet has no {each}", do="make one with `plan linet`")
    return Treatment(blocks=blocks, stem_slices=slices)


def prove_plan(system: LinetSystem, plan: Plan) -> ProofReport:
    """Compare the run's training step under a plan with the one that keeps everything, and check the network.

    Args:
        system: Its model is afterwards as it was.
        plan: From `plan_of`.

    Raises:
        PlanError: It is for another network.
    """
    model = system.model
    treatment = treatment_of(plan, model)
    work = system.workload()

    def run(treatment: Treatment) -> Callable[[], object]:
        def step() -> object:
            with _treated(model, treatment):
                return work.step()

        return step

    report = prove_step(run(Treatment()), run(treatment), model, optimizers=work.optimizers)
    size = min(system.config.data.image_size, 64)
    return replace(report, checks=check_network(model, size))


@contextmanager
def _treated(model: LINet, treatment: Treatment) -> Iterator[None]:
    before, model.treatment = model.treatment, treatment
    try:
        yield
    finally:
        model.treatment = before
