"""A plan in force changes what is kept, and nothing else; taken off, it has never been."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from planner_toys import squares, stack, transformer

from frostline.errors import ConfigError, PlanError
from frostline.ops import checkpoint_
from frostline.planner import apply_, plan_workload
from frostline.records import Plan, Treatment, from_json, to_json


def handmade(*treatments: Treatment) -> Plan:
    return Plan(
        treatments=treatments,
        budget_bytes=0,
        predicted_peak_bytes=1,
        resident_bytes=1,
        baseline_peak_bytes=1,
        predicted_cost=0.0,
        proof_class="EXACT",
        method="predicted",
    )


def state(model):
    return [(name, type(module), set(vars(module))) for name, module in model.named_modules()]


def test_types_state_and_copies_stay_and_removing_twice_is_once():
    work = transformer(2)
    made = plan_workload(work, budget="smallest")
    assert made.treated
    before, names = state(work.model), list(work.model.state_dict())
    applied = apply_(work.model, made)
    assert [type(m) for m in work.model.modules()] == [kind for _, kind, _ in before]
    assert list(work.model.state_dict()) == names
    for other in (copy.deepcopy(work.model), pickle.loads(pickle.dumps(work.model))):
        x, target = work.inputs
        torch.manual_seed(1)
        expected = work.model(x, target)
        torch.manual_seed(1)
        assert torch.equal(other(x, target), expected)
    applied.remove()
    applied.remove()
    assert state(work.model) == before


def test_it_is_taken_off_after_an_exception():
    model = stack()
    before = state(model)
    with pytest.raises(RuntimeError, match="stop"), apply_(model, handmade(Treatment(unit="1.0", kind="checkpoint"))):
        assert state(model) != before
        raise RuntimeError("stop")
    assert state(model) == before


def test_a_plan_for_another_model_is_one_clear_error():
    with pytest.raises(PlanError) as raised:
        apply_(stack(2), handmade(*(Treatment(unit=f"layers.{i}", kind="checkpoint") for i in range(5))))
    assert str(raised.value) == (
        "the plan is for another model: this Sequential has no 'layers.0', 'layers.1', 'layers.2' and 2 more\n"
        "  do     make a plan for this model, or apply it to the module that it was made for"
    )


def test_an_unknown_kind_is_refused_before_anything_is_done():
    model = stack()
    before = state(model)
    plan = handmade(Treatment(unit="1.0", kind="checkpoint"), Treatment(unit="1.1", kind="magic"))
    with pytest.raises(PlanError, match="no treatment is called 'magic'"):
        apply_(model, plan)
    assert state(model) == before


def test_a_failure_half_way_leaves_nothing_behind():
    model = stack()
    handle = checkpoint_(model, ["1.1"])
    before = state(model)
    plan = handmade(*(Treatment(unit=f"1.{i}", kind="checkpoint") for i in range(2)))
    with pytest.raises(ConfigError, match="checkpointed already"):
        apply_(model, plan)
    assert state(model) == before
    handle.remove()


def test_a_plan_from_a_file_is_the_plan():
    made = plan_workload(squares(stack(), torch.randn(64, 32)), budget="smallest", units=["1.0", "1.2"])
    made = replace(made, treatments=(*made.treatments, Treatment(unit="x", kind="chunk", arguments={"num_chunks": 2})))
    assert from_json(to_json(made)) == made
    assert str(from_json(to_json(made))) == str(made)


def test_a_plan_prints_neighbours_of_one_kind_as_one():
    treatments = [Treatment(unit=f"blocks.{i}", kind="checkpoint" if i < 11 else "keep") for i in range(12)]
    plan = replace(
        handmade(*treatments, Treatment(unit="tower", kind="chunk", arguments={"num_chunks": 2})),
        budget_bytes=2**20,
        predicted_cost=0.25,
        notes=("a note",),
    )
    assert str(plan) == (
        "plan for budget 1.0 MiB: predicted peak 1 B instead of 1 B, +25.0% work, EXACT\n"
        "  blocks.0 to blocks.10: checkpoint\n"
        "  tower: chunk (num_chunks=2)\n"
        "  note: a note"
    )
    assert str(handmade()).splitlines()[1] == "  nothing to do"


@pytest.mark.parametrize("arguments", [{}, {"num_chunks": 0}, {"num_chunks": 4, "size": 1}, {"num_chunks": "4"}])
def test_arguments_that_a_treatment_does_not_take(arguments):
    model = stack()
    with pytest.raises(PlanError, match=r"'chunk' cannot have the arguments (.|\n)*num_chunks, such as 16"):
        apply_(model, handmade(Treatment(unit="1.0", kind="chunk", arguments=arguments)))
