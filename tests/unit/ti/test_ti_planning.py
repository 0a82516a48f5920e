from __future__ import annotations

from functools import partial

import pytest
from torch import nn

from frostline import records
from frostline.errors import BudgetError, ConfigError, PlanError
from frostline.records import Plan
from frostline.systems.ti.infinity.schedule import square_schedule
from frostline.systems.ti.infinity.transformer import Infinity
from frostline.systems.ti.infinity.treatment import Treatment
from frostline.systems.ti.peak_table import Row, Setting, Step, peak_table, real_step
from frostline.systems.ti.planning import ladder, plan_treatment, prove_treatment, transformer_in, treatment_of
from ti_infinity_parts import tiny_config

SETTING = Setting(
    model="tiny",
    transformer=tiny_config(width=256, mlp_ratio=4.0),
    schedule=square_schedule(1, 16, 32),
    text_tokens=5,
    num_rounds=1,
)
SMALL = Setting(model="small", transformer=tiny_config(), schedule=square_schedule(1, 2, 4), text_tokens=5)
HALF = ladder("bf16-mixed")


def planned(budget, folder, precision="bf16-mixed", **options):
    def workload(transformer):
        return Step(Row(name="frozen"), SETTING, transformer, folder).workload()

    build = partial(Infinity, SETTING.transformer)
    return plan_treatment(build, workload, budget=budget, precision=precision, **options)


@pytest.fixture(scope="module")
def peaks():
    """Of each rung, measured: plans are made on fake tensors."""
    rows = [Row(name=str(number), treatment=rung) for number, rung in enumerate(HALF)]
    return [row.peak_bytes for row in peak_table(SETTING, SMALL, rows, fake=False, device="cpu").rows]


def test_the_ladder_adds_one_treatment_at_a_time():
    assert [str(rung) for rung in HALF] == [
        "no treatment",
        "bfloat16 weights",
        "bfloat16 weights, checkpointed blocks",
        "bfloat16 weights, checkpointed blocks, checkpointed parts",
        "bfloat16 weights, checkpointed blocks, checkpointed parts, offloaded boundaries",
    ]
    assert not any(rung.bfloat16_weights for rung in ladder("32-true") + ladder("16-mixed"))


@pytest.mark.parametrize("rung", [0, 1, 3])
def test_the_cheapest_that_fits_is_taken(rung, peaks, tmp_path):
    assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == len(peaks)
    plan = planned(f"{peaks[rung]}B", tmp_path)
    assert treatment_of(plan) == HALF[rung]
    assert plan.predicted_peak_bytes == peaks[rung] == plan.budget_bytes
    assert plan.baseline_peak_bytes == peaks[0]
    assert plan.proof_class == "EXACT" and plan.method == "predicted"
    assert (plan.predicted_cost > 0.1) == HALF[rung].checkpoint_blocks
    assert not plan.notes


def test_the_smallest_and_none(peaks, tmp_path):
    plan = planned("smallest", tmp_path)
    assert treatment_of(plan) == HALF[-1] and plan.budget_bytes == 0 and plan.notes
    assert "blocks: checkpoint-parts" in str(plan)
    with pytest.raises(BudgetError, match="no plan fits 1MiB: the smallest peak is") as caught:
        planned("1MiB", tmp_path)
    assert caught.value.smallest_bytes == peaks[-1]


def test_what_is_configured_is_priced(peaks, tmp_path):
    chosen = Treatment(bfloat16_weights=True, checkpoint_blocks=True)
    plan = planned("", tmp_path, configured=chosen)
    assert treatment_of(plan) == chosen and plan.predicted_peak_bytes == peaks[2]


def test_float32_steps_keep_float32_weights(peaks, tmp_path):
    assert treatment_of(planned(f"{peaks[0] - 1}B", tmp_path, "32-true")) == ladder("32-true")[1]


def test_plans_survive_json_and_other_plans_are_refused(tmp_path):
    made = planned("", tmp_path, configured=HALF[-1])
    plan = records.from_json(records.to_json(made))
    assert isinstance(plan, Plan) and treatment_of(plan) == HALF[-1]
    for unit, kind in (("blocks", "chunk-rays"), ("layer1.0", "offload")):
        other = records.Treatment(unit=unit, kind=kind)
        with pytest.raises(PlanError, match="the plan is for another model: ti has no"):
            treatment_of(Plan(**{**vars(plan), "treatments": (other,)}))
    with pytest.raises(PlanError, match="there is no Infinity in this Linear"):
        transformer_in(nn.Linear(1, 1))


@pytest.mark.parametrize("rung", HALF, ids=str)
def test_every_rung_is_proved_on_the_whole_step(rung, tmp_path):
    work = real_step(Row(name="frozen"), SMALL, tmp_path).workload()
    report = prove_treatment(work, rung, tmp_path)
    assert report.proof_class == "EXACT" and report.loss_difference == 0
    assert [each.name for each in report.per_parameter] == ["concept.vectors"]
    assert list(tmp_path.iterdir()) == []


def test_a_transformer_that_trains_is_not_proved(tmp_path):
    work = real_step(Row(name="trainable", frozen=False), SMALL, tmp_path).workload()
    with pytest.raises(ConfigError, match="call freeze_"):
        prove_treatment(work, HALF[1], tmp_path)
