"""Which of the transformer's treatments a step needs to stay within a budget; as a plan, and proved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from frostline import records
from frostline.errors import BudgetError, PlanError
from frostline.memory import Workload
from frostline.planner.running import Run, Runner
from frostline.proof import prove_step
from frostline.records import Plan, ProofReport
from frostline.systems.ti.infinity.transformer import Infinity
from frostline.systems.ti.infinity.treatment import Treatment, treat_
from frostline.tracing import build_fake, fake_tensors
from frostline.training import Precision
from frostline.units import format_bytes, parse_bytes

_UNIT = "blocks"
_KINDS = {choice.name: choice.name.replace("_", "-") for choice in fields(Treatment)}


def plan_treatment(
    build_model: Callable[[], nn.Module],
    build_workload: Callable[[Any], Workload],
    *,
    budget: str,
    precision: Precision,
    configured: Treatment | None = None,
) -> Plan:
    """The treatment with the least extra work whose step stays within a budget.

    Nothing is computed: the step is traced on fake tensors under one treatment after the other, until one fits.

    Args:
        build_model: Makes a model with one `Infinity` in it, untreated.
        build_workload: Makes a step of it, with the transformer frozen.
        budget: Such as ``6GiB``, or ``smallest``; empty prices `configured`.
        precision: Of the step; weights are stored in bfloat16 under ``bf16-mixed`` alone.
        configured: What a run does without a budget.

    Raises:
        BudgetError: None fits.
    """
    rungs = ladder(precision) if budget else (configured or Treatment(),)
    limit = 0 if budget in ("", "smallest") else parse_bytes(budget)
    with _tracer(build_model, build_workload) as trace:
        plain = trace(Treatment())
        runs: dict[Treatment, Run] = {}
        for rung in rungs:
            runs[rung] = plain if rung == Treatment() else trace(rung)
            if runs[rung].peak_bytes <= limit:
                break
    chosen = min(runs, key=lambda rung: runs[rung].peak_bytes)  # the last, where it fits: those before it did not
    run = runs[chosen]
    if limit and run.peak_bytes > limit:
        raise BudgetError(
            f"no plan fits {budget}: the smallest peak is {format_bytes(run.peak_bytes)}, at {run.peak_at}",
            smallest_bytes=run.peak_bytes,
            do="raise the budget, or take a smaller batch, picture or model",
        )
    return Plan(
        treatments=tuple(records.Treatment(unit=_UNIT, kind=kind) for kind in _kinds(chosen)),
        budget_bytes=limit,
        predicted_peak_bytes=run.peak_bytes,
        resident_bytes=run.live[0],
        baseline_peak_bytes=plain.peak_bytes,
        predicted_cost=run.work / max(1, plain.work) - 1,
        proof_class="EXACT",
        method="predicted",
        peak_at=run.peak_at,
        notes=("what is offloaded goes to a file or to host memory; its way there and back is no work here",)
        if chosen.offload
        else (),
    )


def ladder(precision: Precision) -> tuple[Treatment, ...]:
    """The treatments from the one that costs nothing to the one that costs most; each adds to the one before.

    Stored weights come first, because they save the casts too.
    """
    half = precision == "bf16-mixed"
    stored = (Treatment(bfloat16_weights=True),) if half else ()
    return (
        Treatment(),
        *stored,
        Treatment(bfloat16_weights=half, checkpoint_blocks=True),
        Treatment(bfloat16_weights=half, checkpoint_blocks=True, checkpoint_parts=True),
        Treatment(bfloat16_weights=half, checkpoint_blocks=True, checkpoint_parts=True, offload=True),
    )


def treatment_of(plan: Plan) -> Treatment:
    """What a plan of `plan_treatment` does.

    Raises:
        PlanError: It is of another kind.
    """
    known = {kind: name for name, kind in _KINDS.items()}
    for each in plan.treated:
        if each.unit != _UNIT or each.kind not in known:
            raise PlanError(f"the plan is for another model: ti has no {each}", do="make one with `plan ti`")
    return Treatment(**{known[each.kind]: True for each in plan.treated})


def prove_treatment(work: Workload, treatment: Treatment, folder: Path | None = None) -> ProofReport:
    """Compare a training step under a treatment with the one that keeps everything.

    Args:
        work: A step on real tensors, of a model with one untreated `Infinity` in it, which is afterwards as it was.
        treatment: What to prove.
        folder: For stored weights, and on the CPU for what is offloaded; a temporary one if left out.

    Raises:
        ConfigError: The transformer is not frozen.
    """
    transformer = transformer_in(work.model)

    def treated() -> object:
        with TemporaryDirectory(dir=folder) as place, _treated(transformer, treatment, Path(place)):
            return work.step()

    return prove_step(work.step, treated, work.model, optimizers=work.optimizers)


def transformer_in(model: nn.Module) -> Infinity:
    """The one `Infinity` in a model.

    Raises:
        PlanError: There is none.
    """
    for module in model.modules():
        if isinstance(module, Infinity):
            return module
    raise PlanError(f"there is no Infinity in this {type(model).__name__}", do="make a plan with `plan ti`")


def _kinds(treatment: Treatment) -> list[str]:
    return [kind for name, kind in _KINDS.items() if getattr(treatment, name)] or ["keep"]


@contextmanager
def _treated(transformer: Infinity, treatment: Treatment, folder: Path) -> Iterator[None]:
    on_cpu = transformer.pos_start.device.type == "cpu"
    treated = treat_(transformer, treatment, weight_file=folder / "weights", folder=folder if on_cpu else None)
    try:
        yield
    finally:
        treated.remove()


@contextmanager
def _tracer(
    build_model: Callable[[], nn.Module], build_workload: Callable[[Any], Workload]
) -> Iterator[Callable[[Treatment], Run]]:
    """Traces the step under a treatment."""
    mode = fake_tensors()
    model = build_fake(build_model, mode)
    with TemporaryDirectory() as name, mode:
        work = build_workload(model)
        transformer = transformer_in(work.model)
        with Runner(work, {}).opened() as runner:

            def trace(treatment: Treatment) -> Run:
                with _treated(transformer, treatment, Path(name)):
                    return runner.run()

            yield trace
