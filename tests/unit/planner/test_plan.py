"""A plan is what a run of the planned step needs, and its gradients are the plain step's."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planner_toys import Transformer, conv_block, convolutions, mlp, squares, stack, transformer
from torch import nn

from frostline.errors import BudgetError, PlanError
from frostline.memory import Workload, measure
from frostline.planner import (
    Planner,
    apply_,
    find_units,
    largest_batch,
    plan,
    plan_blueprint,
    plan_workload,
    prove,
)
from frostline.planner.exploration import Exploration, Found
from frostline.planner.running import Runner
from frostline.records import Plan


def planned(work: Workload, budget, **settings) -> Plan:
    return plan_workload(work, budget=budget, **settings)


def real_peak(work: Workload, made: Plan | None = None) -> int:
    if made is None:
        return measure(work.step, work.model, optimizers=work.optimizers, inputs=work.inputs).peak_bytes
    with apply_(work.model, made):
        return real_peak(work)


def proof_class(work: Workload, made: Plan) -> str:
    return prove(work.step, work.model, made, optimizers=work.optimizers).proof_class


def kinds(made: Plan) -> set[str]:
    return {treatment.kind for treatment in made.treated}


def test_predicted_is_real_at_six_budgets_of_a_twelve_layer_transformer():
    work = transformer(12)
    smallest = planned(work, "smallest")
    assert smallest.method == "predicted"
    assert smallest.baseline_peak_bytes == real_peak(work)
    assert smallest.predicted_peak_bytes < 0.5 * smallest.baseline_peak_bytes
    peaks, costs = [], []
    for share in (1.0, 0.8, 0.6, 0.4, 0.2, 0.0):
        span = smallest.baseline_peak_bytes - smallest.predicted_peak_bytes
        budget = smallest.predicted_peak_bytes + round(share * span)
        made = planned(work, budget)
        assert made.predicted_peak_bytes <= made.budget_bytes == budget
        assert real_peak(work, made) == pytest.approx(made.predicted_peak_bytes, rel=0.005)
        assert proof_class(work, made) == made.proof_class == "EXACT"
        peaks.append(made.predicted_peak_bytes)
        costs.append(made.predicted_cost)
    assert len(set(peaks)) == 6
    assert costs == sorted(costs) and costs[0] == 0.0 < costs[-1] < 0.5


SMALL = squares(stack(5), torch.randn(16, 4, 32))
SMALL_RANGE: list[int] = []


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.floats(0, 1))
def test_any_budget_between_smallest_and_baseline_is_respected_by_the_real_peak(share):
    if not SMALL_RANGE:
        made = planned(SMALL, "smallest")
        SMALL_RANGE.extend((made.predicted_peak_bytes, made.baseline_peak_bytes))
    low, high = SMALL_RANGE
    made = planned(SMALL, low + math.floor(share * (high - low)))
    assert real_peak(SMALL, made) <= made.budget_bytes
    assert proof_class(SMALL, made) == "EXACT"


def test_a_budget_that_the_plain_step_meets_changes_nothing():
    work = squares(stack(), torch.randn(8, 32))
    made = planned(work, "1GiB")
    assert made.treated == () and made.predicted_cost == 0.0
    assert made.predicted_peak_bytes == made.baseline_peak_bytes == real_peak(work)


def test_planning_leaves_model_optimizer_gradients_and_random_numbers_as_they_were():
    work = transformer(2)
    work.step()
    work.model.front[0].weight.grad = torch.ones(64, 16)
    values = {name: tensor.clone() for name, tensor in work.model.state_dict().items()}
    (optimizer,) = work.optimizers
    moments = [{key: value.clone() for key, value in state.items()} for state in optimizer.state.values()]
    random = torch.get_rng_state()
    types = [(type(module), set(vars(module))) for module in work.model.modules()]
    planned(work, "smallest")
    assert all(type(p) is nn.Parameter for p in work.model.parameters())
    assert all(torch.equal(values[name], tensor) for name, tensor in work.model.state_dict().items())
    for before, after in zip(moments, optimizer.state.values(), strict=True):
        assert all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(work.model.front[0].weight.grad, torch.ones(64, 16))
    assert torch.equal(random, torch.get_rng_state())
    assert types == [(type(module), set(vars(module))) for module in work.model.modules()]


def test_frozen_convolutions_are_made_lean_before_they_are_recomputed():
    work = squares(convolutions(), torch.randn(4, 3, 32, 32))
    smallest = planned(work, "smallest")
    budget = (smallest.predicted_peak_bytes + smallest.baseline_peak_bytes) // 2
    made = planned(work, budget)
    assert "lean" in kinds(made)
    assert real_peak(work, made) == made.predicted_peak_bytes <= budget
    assert proof_class(work, made) == "EXACT"


def test_accumulated_micro_batches_call_a_unit_twice():
    model, parts = stack(), torch.randn(2, 64, 32)
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9)

    def step():
        optimizer.zero_grad()
        total = 0.0
        for part in parts:
            loss = model(part).square().mean() / 2
            loss.backward()
            total += float(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return total

    work = Workload(step=step, model=model, optimizers=(optimizer,), inputs=parts)
    made = planned(work, "smallest")
    assert made.predicted_peak_bytes < made.baseline_peak_bytes
    assert real_peak(work, made) == made.predicted_peak_bytes
    assert proof_class(work, made) == "EXACT"


def test_two_phases_are_planned_as_one_step():
    generator = nn.Sequential(nn.Linear(8, 32), nn.Sequential(mlp(), mlp()))
    critic = nn.Sequential(nn.Sequential(mlp(), mlp()), nn.Linear(32, 1))
    model = nn.ModuleDict({"generator": generator, "critic": critic})
    first, second = (torch.optim.Adam(part.parameters()) for part in (critic, generator))
    z = torch.randn(64, 8)

    def step():
        fake = generator(z)
        loss = critic(torch.randn(64, 32)).mean() - critic(fake.detach()).mean()
        first.zero_grad()
        loss.backward()
        first.step()
        second.zero_grad()
        critic(fake).mean().backward()
        second.step()
        return loss.detach()

    work = Workload(step=step, model=model, optimizers=(first, second), inputs=z)
    made = planned(work, "smallest")
    assert {name.partition(".")[0] for name in (t.unit for t in made.treated)} == {"generator", "critic"}
    assert real_peak(work, made) == made.predicted_peak_bytes < made.baseline_peak_bytes
    assert proof_class(work, made) == "EXACT"


def test_a_gradient_scaler_is_left_as_it_was_and_its_steps_count():
    model, x = stack(), torch.randn(16, 32)
    optimizer, scaler = torch.optim.Adam(model[0].parameters()), torch.amp.GradScaler("cpu", init_scale=4.0)

    def step():
        loss = model(x).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return loss.detach()

    fresh = scaler.state_dict()
    made = plan(step, model, budget="smallest", optimizers=[optimizer], inputs=x)
    assert scaler.state_dict() == fresh and scaler._scale is None
    step()
    used = scaler.state_dict()
    assert plan(step, model, budget="smallest", optimizers=[optimizer], inputs=x).treatments == made.treatments
    assert scaler.state_dict() == used
    assert type(scaler._scale) is torch.Tensor
    real = measure(step, model, optimizers=[optimizer], inputs=x).peak_bytes
    assert made.baseline_peak_bytes == pytest.approx(real, abs=64)  # but for the scaler's own numbers


class Remembers(nn.Module):
    """Makes a mask in its first call, and keeps it."""

    def __init__(self):
        super().__init__()
        self.body, self.kept, self.mask = stack(), {}, None

    def forward(self, x):
        if torch.is_grad_enabled():
            self.mask = self.mask if self.mask is not None else torch.ones_like(x)
            self.kept.setdefault("mask", torch.ones_like(x))
            self.later = self.mask * 2
            x = x * self.mask * self.kept["mask"]
        return self.body(x)


def test_no_tensor_without_values_stays_in_the_model():
    work = squares(Remembers(), torch.randn(8, 32))
    planned(work, "smallest")
    assert work.model.mask is None and work.model.kept == {} and not hasattr(work.model, "later")
    assert math.isfinite(float(work.step()))


def test_an_lstm_is_really_run_and_the_plan_says_so():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(mlp() for _ in range(3))
            self.memory = nn.LSTM(32, 32, batch_first=True)

        def forward(self, x):
            for block in self.blocks:
                x = x + block(x)
            return self.memory(x)[0]

    work = squares(Recurrent(), torch.randn(8, 16, 32))
    made = planned(work, "smallest")
    assert made.method == "measured"
    assert "an LSTM keeps far more memory" in made.notes[0]
    assert real_peak(work, made) == made.predicted_peak_bytes < made.baseline_peak_bytes


def test_sizes_that_depend_on_values_are_really_run_and_the_plan_says_so():
    model, x = stack(), torch.randn(32, 32)

    class Positive(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            y = self.model(x)
            return y[y > 0]

    work = squares(Positive(), x)
    made = planned(work, "smallest")
    assert made.method == "measured" and "nonzero" in made.notes[0]
    assert real_peak(work, made) == made.predicted_peak_bytes < made.baseline_peak_bytes


def test_a_model_without_values_is_planned_and_the_plan_is_for_the_real_one():
    def build_workload(model):
        x, target = torch.randn(4, 64, 16), torch.randint(0, 100, (4, 64))
        optimizer = torch.optim.AdamW(model.front.parameters(), lr=1e-3)

        def step():
            model(x, target).backward()
            optimizer.step()
            optimizer.zero_grad()

        return Workload(step=step, model=model, optimizers=(optimizer,), inputs=(x, target))

    made = plan_blueprint(lambda: Transformer(2), build_workload, budget="smallest")
    assert made.method == "predicted"
    work = transformer(2)
    assert real_peak(work, made) == made.predicted_peak_bytes
    assert proof_class(work, made) == "EXACT"


def test_a_budget_below_the_smallest_peak_names_that_peak_and_what_holds_it():
    work = transformer(2)
    smallest = planned(work, "smallest").predicted_peak_bytes
    with pytest.raises(BudgetError) as raised:
        planned(work, smallest - 1)
    error = raised.value
    assert error.smallest_bytes == smallest
    for part in (
        f"{smallest} bytes",
        "parameters",
        "saved for backward",
        "blocks.",
        "planner_toys.py:",
        "largest_batch",
    ):
        assert part in str(error), part


def test_a_budget_below_what_is_there_before_the_step_asks_for_less_of_that():
    work = transformer(2)
    with pytest.raises(BudgetError, match="are there before the step: freeze more"):
        planned(work, "10KiB")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"budget": 0}, "the budget is 0"),
        ({"budget": -5}, "the budget is -5"),
        ({"budget": None}, "the budget is None"),
        ({"budget": float("nan")}, "the budget is nan"),
        ({"budget": "1MiB", "units": "1.9"}, "no module of the model is called '1.9'"),
        ({"budget": "1MiB", "allow": ("exakt",)}, "no class of gradients is called 'exakt'"),
        ({"budget": "1MiB", "units": ["1.9"]}, "no module of the model is called '1.9'"),
        ({"budget": "1MiB", "units": ["1", "1.0"]}, "'1.0' lies inside '1'"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(settings, text):
    with pytest.raises(PlanError, match=text):
        planned(squares(stack(), torch.randn(4, 32)), **settings)


def test_units_can_be_named():
    made = planned(squares(stack(), torch.randn(64, 32)), "smallest", units=["1.1"])
    assert [str(treatment) for treatment in made.treatments] == ["1.1: checkpoint"]


def upstream() -> Workload:
    """A frozen tower before what trains."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(mlp(), mlp()), nn.Linear(32, 4))
    model[0].requires_grad_(False)
    return squares(model, torch.randn(64, 8, 32))


def test_a_frozen_part_before_what_trains_runs_by_chunks_only_where_rounding_is_allowed():
    work = upstream()
    assert planned(work, "smallest").treated == ()
    made = planned(work, "smallest", allow=("exact", "rounding"))
    assert kinds(made) == {"chunk"} and made.proof_class == "ROUNDING"
    assert made.predicted_peak_bytes < 0.6 * made.baseline_peak_bytes
    assert real_peak(work, made) == made.predicted_peak_bytes
    assert proof_class(work, made) in ("EXACT", "ROUNDING")


def test_a_module_whose_samples_meet_is_never_run_by_chunks():
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp()

        def forward(self, x):
            return self.body(x - x.mean(0))

    model = nn.Sequential(nn.Sequential(Centred(), mlp(), mlp()), nn.Linear(32, 4))
    model[0].requires_grad_(False)
    made = planned(squares(model, torch.randn(64, 8, 32)), "smallest", allow=("exact", "rounding"), units=["0.0"])
    assert made.treated == ()


def test_the_largest_batch_fits_and_the_next_one_does_not():
    model, asked = stack(2), []

    def make_workload(size):
        asked.append(size)
        return squares(model, torch.randn(size, 8, 32))

    found = largest_batch(make_workload, "600KiB")
    assert found.plan.predicted_peak_bytes <= 600 * 1024
    assert real_peak(make_workload(found.batch_size), found.plan) <= 600 * 1024
    with pytest.raises(BudgetError):
        planned(make_workload(found.batch_size + 1), "600KiB")
    assert len(asked) <= 10, asked
    assert largest_batch(make_workload, "600KiB", at_most=2).batch_size == 2
    with pytest.raises(BudgetError):
        largest_batch(make_workload, "8KiB")
    with pytest.raises(PlanError, match="every batch has a smallest peak"):
        largest_batch(make_workload, "smallest")
    with pytest.raises(PlanError, match="the largest batch to try is 0"):
        largest_batch(make_workload, "600KiB", at_most=0)


def test_several_budgets_are_planned_as_each_by_itself():
    work = squares(stack(4), torch.randn(64, 32))
    smallest = planned(work, "smallest")
    half = (smallest.predicted_peak_bytes + smallest.baseline_peak_bytes) // 2
    budgets = (2**30, half, "smallest")
    together = Planner(work).plans(budgets)
    for budget, made in zip(budgets, together, strict=True):
        alone = planned(work, budget)
        assert (made.predicted_peak_bytes, made.predicted_cost) == (alone.predicted_peak_bytes, alone.predicted_cost)
    assert together[0].treated == () and together[2] == smallest
    with pytest.raises(PlanError, match="there is no budget to plan for"):
        Planner(work).plans([])


def test_one_optimizer_may_come_alone():
    work = squares(stack(), torch.randn(64, 32))
    made = plan(work.step, work.model, budget="smallest", optimizers=work.optimizers[0], inputs=work.inputs)
    assert made == planned(work, "smallest")
    assert prove(work.step, work.model, made, optimizers=work.optimizers[0]).proof_class == "EXACT"


def test_what_is_only_bounded_is_chosen_where_it_is_allowed_and_nowhere_else():
    work = squares(stack(), torch.randn(256, 4, 32))
    exact = planned(work, "smallest")
    assert kinds(exact) == {"checkpoint"}
    budget = round(0.45 * exact.predicted_peak_bytes + 0.55 * exact.baseline_peak_bytes)
    made = planned(work, budget, allow=("bounded",))
    assert kinds(made) <= {"compress-bfloat16", "compress-int8"} and made.treated
    assert made.proof_class == "BOUNDED"
    assert real_peak(work, made) == pytest.approx(made.predicted_peak_bytes, rel=0.005)
    assert proof_class(work, made) == "BOUNDED"


def every_choice(work: Workload) -> tuple[list[Found], Found]:
    """All choices that there are, each run on fake tensors, and the one that changes nothing."""
    modules = {name: work.model.get_submodule(name) for name in find_units(work.model)}
    with Runner(work, modules).opened() as runner:
        exploration = Exploration(runner, modules, {}, {}, frozenset(), ("EXACT",))
        exploration.look(0)
        tried = [exploration.run(kinds) for kinds in product(*exploration.kinds)]
    return tried, tried[0]


@pytest.mark.parametrize("make", [convolutions, lambda: stack(4)], ids=["convolutions", "linear layers"])
def test_a_plan_recomputes_no_more_than_the_best_of_all_choices(make):
    x = torch.randn(4, 3, 16, 16) if make is convolutions else torch.randn(16, 4, 32)
    work = squares(make(), x)
    tried, plain = every_choice(work)
    assert len(tried) in (16, 64)
    low = min(found.peak_bytes for found in tried)
    planner = Planner(work, units=find_units(work.model))
    assert planner.plan("smallest").predicted_peak_bytes == low
    for share in (0.0, 0.2, 0.6):
        budget = low + round(share * (plain.peak_bytes - low))
        best = min(found.work for found in tried if found.peak_bytes <= budget) / plain.work - 1
        made = planner.plan(budget)
        assert made.predicted_peak_bytes <= budget
        assert made.predicted_cost <= 1.1 * best + 1e-3


def test_frozen_layers_beside_the_blocks_are_made_lean():
    torch.manual_seed(0)
    stem = (nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2))
    trunk = nn.Sequential(*stem, conv_block(16, 16), conv_block(16, 16)).eval().requires_grad_(False)
    work = squares(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), trunk), torch.randn(4, 3, 32, 32))
    made = planned(work, "smallest")
    assert {t.unit for t in made.treated if t.kind == "lean"} >= {"1.0", "1.1", "1.3"}
    assert made.notes == ()
    assert real_peak(work, made) == made.predicted_peak_bytes
    assert made.predicted_peak_bytes < planned(work, "smallest", units=["1.4", "1.5"]).predicted_peak_bytes
    assert proof_class(work, made) == "EXACT"
    assert "1.0" not in {t.unit for t in planned(work, "1GiB").treatments}
