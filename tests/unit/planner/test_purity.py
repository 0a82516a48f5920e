"""A unit whose forward must not run twice is never recomputed, and the plan says why."""

import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from planner_toys import mlp, squares
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from frostline.memory import Workload
from frostline.planner import plan_workload, prove
from frostline.planner.purity import impure_units, mixing_units


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.num_calls = mlp(), 0

    def forward(self, x):
        self.num_calls += 1
        return self.body(x)


class Averages(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp()
        self.register_buffer("mean", torch.zeros(32))

    def forward(self, x):
        self.mean.lerp_(x.detach().mean(0), 0.1)
        return self.body(x)


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.norm = mlp(), nn.BatchNorm1d(32)

    def forward(self, x):
        return self.body(self.norm(x))


class Unsteady(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x):
        return self.body(x) * random.random()


class Skips(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x):
        return x if random.random() < 1e-9 else self.body(x)


class Lists(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.losses = mlp(), []

    def forward(self, x):
        self.losses.append(x.detach().mean())
        return self.body(x)


class Runs(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.seen = mlp(), torch.zeros(())

    def forward(self, x):
        self.seen = self.seen + 1
        return self.body(x)


@dataclass
class Scored:
    hidden: torch.Tensor
    scores: dict


class Returns(nn.Module):
    """Another output in a class that nobody knows."""

    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x):
        return Scored(self.body(x), {"noise": np.random.rand()})


class Spectral(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = spectral_norm(nn.Linear(32, 32))
        self.other = mlp()

    def forward(self, x):
        return self.other(self.body(x))


class Dropped(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(mlp(), nn.Dropout(0.5))

    def forward(self, x):
        return self.body(x)


CASES = {
    Counts: "changes the attribute 'num_calls'",
    Averages: "changes the buffer 'mean'",
    Normalised: "changes the buffer 'norm.running_mean', of a BatchNorm1d in training mode",
    Unsteady: "draws numbers that no recomputation draws again, from 'random'",
    Skips: "draws numbers that no recomputation draws again, from 'random'",
    Lists: "run again, its forward changes the attribute 'losses.len'",
    Runs: "run again, its forward changes the attribute 'seen'",
    Spectral: "changes the buffer 'body.parametrizations.weight.0._u'",
}


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
def test_an_impure_unit_is_kept_and_the_others_are_not(kind):
    torch.manual_seed(0)
    work = squares(nn.Sequential(nn.Linear(32, 32), mlp(), kind(), mlp()), torch.randn(64, 32))
    made = plan_workload(work, budget="smallest", units=["1", "2", "3"])
    assert {t.unit for t in made.treated} and "2" not in {t.unit for t in made.treated}
    assert [note for note in made.notes if note.startswith("never recomputed: 2") and CASES[kind] in note], made.notes
    assert prove(work.step, work.model, made, optimizers=work.optimizers).proof_class == "EXACT" or kind in (
        Unsteady,
        Skips,
    )


def test_dropout_and_a_batch_norm_in_eval_mode_are_pure():
    model = nn.Sequential(nn.Linear(32, 32), Dropped(), Normalised().eval())
    assert impure_units(squares(model, torch.randn(8, 32)), {"1": model[1], "2": model[2]}) == {}


class Remembers(nn.Module):
    """Keeps what it has made, which a second run makes again."""

    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x):
        self.output = self.body(x)
        self.parts = [self.output.detach()]
        return self.output


def test_what_a_second_run_makes_again_is_pure():
    model = nn.Sequential(nn.Linear(32, 32), Remembers())
    assert impure_units(squares(model, torch.randn(8, 32)), {"1": model[1]}) == {}


def test_outputs_of_an_unknown_class_are_looked_into():
    model = nn.ModuleList([nn.Linear(32, 32), Returns()])

    def step():
        model[1](model[0](torch.ones(4, 32))).hidden.mean().backward()
        model.zero_grad()

    found = impure_units(Workload(step=step, model=model), {"1": model[1]})
    assert "'numpy.random'" in found["1"]
    chunked = mixing_units(Workload(step=step, model=model), {"1": model[1]})
    assert chunked == {"1": "its samples are not treated apart"}


class Cached(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x, cache):
        cache["keys"] = torch.cat([*cache.get("keys", ()), x])[None]
        return self.body(x)


def test_a_key_value_cache_among_the_arguments_is_noticed():
    model = nn.Sequential(nn.Linear(32, 32), Cached())
    x = torch.randn(8, 32)

    def step():
        model[1](model[0](x), {}).mean().backward()
        model.zero_grad()

    work = Workload(step=step, model=model, inputs=x)
    assert impure_units(work, {"1": model[1]}) == {"1": "its forward changes its argument '1.len'"}
    assert plan_workload(work, budget="smallest", units=["1"]).treated == ()


def test_a_unit_that_the_step_does_not_reach_is_not_trusted():
    model = nn.Sequential(nn.Linear(32, 32), mlp(), mlp())

    def step():
        loss = model[1](model[0](torch.ones(4, 32))).mean()
        (gradient,) = torch.autograd.grad(loss, [model[0].weight])
        model[2](gradient)

    found = impure_units(Workload(step=step, model=model), {"1": model[1], "2": model[2]})
    assert found == {"2": "its forward could not be tried: a step without gradients ended with RuntimeError"}


def test_asking_leaves_no_trace():
    model = nn.Sequential(nn.Linear(32, 32), Averages(), Counts())
    work = squares(model, torch.randn(8, 32))
    forwards = [vars(module).get("forward") for module in model.modules()]
    impure_units(work, {"1": model[1]})
    assert not model[1].mean.any() and model[0].weight.grad is None
    assert forwards == [vars(module).get("forward") for module in model.modules()]
    work.step()
    assert model[1].mean.any()
