import gc
import sys
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad, clip_grad_norm_, clip_grad_value_
from torch.optim.optimizer import Optimizer

from flow_parts import Recorder, here
from frostline.tracing import FlowTrace, Leaves, ProcedureTrace


class Listener(Recorder):
    def __init__(self):
        super().__init__()
        self.updates, self.clearings, self.scaler_updates = [], [], []

    def updated(self, update):
        self.updates.append(update)

    def cleared(self, parameters, line, to_none):
        self.clearings.append(([tuple(p.shape) for p in parameters], line, to_none))

    def scaler_updated(self, scaler, line):
        self.scaler_updates.append(line)


@contextmanager
def following():
    listener = Listener()
    trace = ProcedureTrace(listener, FlowTrace(listener, Leaves()))
    with trace.installed(), trace._flow:
        yield trace, listener


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def loss_of(model):
    return model(torch.ones(5, 3)).square().mean()


def test_an_update_says_whose_gradients_what_moved_and_where(model):
    with following() as (trace, listener):
        line = here() + 1
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss_of(model[0]).backward()
        optimizer.step()
        (update,) = listener.updates
    assert update.use.optimizer is optimizer
    assert (update.use.made_at.number, update.line.number, update.use.steps_at.number) == (line, line + 2, line + 2)
    numbers = {name: trace._flow.leaves.number(p) for name, p in model.named_parameters()}
    assert update.gradients == {
        numbers["0.weight"]: "finite",
        numbers["0.bias"]: "finite",
        numbers["1.weight"]: "none",
        numbers["1.bias"]: "none",
    }
    assert {n for n, moved in update.moved.items() if moved} == {numbers["0.weight"], numbers["0.bias"]}
    assert update.rates == (0.1,) and not update.skipped and update.use.num_updates == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.AdamW(p, foreach=True),
        lambda p: torch.optim.AdamW(p, fused=True),
        torch.optim.Adagrad,
        torch.optim.RMSprop,
    ],
)
def test_updates_are_the_same_as_without_a_trace(make):
    def run():
        torch.manual_seed(0)
        net = nn.Linear(3, 2)
        optimizer = make(net.parameters())
        for _ in range(2):
            optimizer.zero_grad()
            loss_of(net).backward()
            optimizer.step()
        return net

    plain = run()
    with following() as (_, listener):
        watched = run()
        assert [all(update.moved.values()) for update in listener.updates] == [True, True]
    for one, other in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_optimizers_own_operators_pass_unseen(model):
    with following() as (trace, _):
        optimizer = torch.optim.AdamW(model.parameters())
        loss_of(model).backward()
        before = trace._flow.num_events
        optimizer.step()
        optimizer.zero_grad()
        assert trace._flow.num_events == before
        assert not trace._flow.paused
    assert trace._flow.notes.writes == {}


def test_a_closure_goes_forward_and_backward_in_sight(model):
    with following() as (trace, listener):
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)

        def closure():
            optimizer.zero_grad()
            loss = loss_of(model)
            loss.backward()
            return loss

        optimizer.step(closure)
        assert not trace._flow.paused
        (update,) = listener.updates
        assert len(listener.backwards) >= 2
        assert set(update.gradients.values()) == {"finite"} and all(update.moved.values())


def test_a_step_that_raises_does_not_blind_the_trace(model):
    with following() as (trace, listener):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer.param_groups[0]["lr"] = "much"
        loss_of(model).backward()
        with pytest.raises(TypeError):
            optimizer.step()
        loss_of(model).backward()
        assert not trace._flow.paused
        assert len(listener.backwards) == 2


def test_clearing(model):
    with following() as (_, listener):
        optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
        line = here() + 1
        optimizer.zero_grad()
        optimizer.zero_grad(set_to_none=False)
        model.zero_grad(False)
        model[1].zero_grad()
    first, second = [(4, 3), (4,)], [(2, 4), (2,)]
    assert [(shapes, at.number - line, to_none) for shapes, at, to_none in listener.clearings] == [
        (first, 0, True),
        (first, 1, False),
        (first + second, 2, False),
        (second, 3, True),
    ]


def test_clipping(model):
    with following() as (_, listener):
        loss_of(model).backward()
        line = here() + 1
        clip_grad_norm_(model.parameters(), 1.0)
        clip_grad_value_(model[0].parameters(), 0.1)
        for parameter in model.parameters():
            parameter.grad.clamp_(-1, 1)
        torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])  # measures, and clips nothing
    assert [(len(gradients), at.number - line) for gradients, at in listener.clippings] == [
        (4, 0),
        (2, 1),
        (1, 3),
        (1, 3),
        (1, 3),
        (1, 3),
    ]


def test_a_scaler_from_scale_to_update(model):
    with following() as (trace, listener):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        loss = scaler.scale(loss_of(model))
        assert trace._flow.scaled_losses
        loss.backward()
        assert listener.backwards[0].scaled
        scaler.unscale_(optimizer)
        assert trace.use_of(optimizer).unscaled
        scaler.step(optimizer)
        line = here() + 1
        scaler.update()
        assert [at.number for at in listener.scaler_updates] == [line]
        assert not trace.use_of(optimizer).unscaled
        (update,) = listener.updates
        assert (update.skipped, update.use.scaled) == (False, True)


def test_a_scaler_that_skips(model):
    with following() as (_, listener):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
        scaler.scale(loss_of(model) * 1e6).backward()
        line = here() + 1
        scaler.step(optimizer)
        scaler.update()
    (update,) = listener.updates
    assert update.skipped and update.line.number == line
    assert "nonfinite" in update.gradients.values()


def test_a_scaler_that_is_switched_off_says_nothing(model):
    with following() as (trace, listener):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        scaler.scale(loss_of(model)).backward()
        assert not trace._flow.scaled_losses
        scaler.step(optimizer)
        scaler.update()
        assert listener.scaler_updates == [] and not listener.updates[0].skipped and not listener.updates[0].use.scaled


def test_where_parameters_are_made_and_modes_and_freezing_attributes_set():
    with following() as (trace, _):
        line = here() + 1
        net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
        net[0].requires_grad = False
        net[0].trainable = True
        net[0].name = "first"
        net.train()
        net.eval()
        loose = nn.Parameter(torch.ones(1))
        net.register_parameter("loose", loose)
        assert trace.made_at[id(net[0].weight)][1].number == line
        assert trace.made_at[id(loose)][1].number == line + 7
        module, name, at = trace.attributes[id(net[0])]
        assert (module, name, at.number) == (net[0], "trainable", line + 2)
        assert trace.mode_line(net[1]).number == line + 4
        assert trace.mode_line(nn.Linear(1, 1)) is None


def test_a_train_method_that_passes_the_call_on_is_looked_through():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def train(self, mode=True):
            super().train(mode)
            return self

    net = Net()
    with following() as (trace, _):
        line = here() + 1
        net.train()
        assert trace.mode_line(net.norm).number == line


def test_habits(model):
    with following() as (trace, _):
        line = here() + 1
        gc.collect()
        torch.cuda.empty_cache()
        torch.set_default_dtype(torch.float64)
        torch.set_default_dtype(torch.float32)
        assert {(what, at.number - line): n for (what, at), n in trace.collected.items()} == {
            ("gc.collect()", 0): 1,
            ("torch.cuda.empty_cache()", 1): 1,
        }
        assert {value: at.number - line for value, at in trace.defaults.items()} == {
            "torch.float64": 2,
            "torch.float32": 3,
        }


PATCHED = [
    (Optimizer, "__init__"),
    (Optimizer, "zero_grad"),
    (nn.Module, "zero_grad"),
    (nn.Module, "__setattr__"),
    (nn.Module, "train"),
    *((torch.amp.GradScaler, name) for name in ("scale", "unscale_", "step", "update")),
    (clip_grad, "_group_tensors_by_device_and_dtype"),
    (gc, "collect"),
    (torch.cuda, "empty_cache"),
    (torch, "set_default_dtype"),
    (torch, "set_default_device"),
    (torch.autograd, "_engine_run_backward"),
]


@pytest.mark.parametrize("raises", [False, True])
def test_everything_is_put_back(raises):
    before = [vars(owner)[name] for owner, name in PATCHED]
    optimizers = sys.modules[Optimizer.__module__]  # torch.optim.optimizer is hidden by a name in torch.optim
    hooks = optimizers._global_optimizer_pre_hooks, optimizers._global_optimizer_post_hooks
    try:
        with following():
            assert all(vars(owner)[name] is not old for (owner, name), old in zip(PATCHED, before, strict=True))
            assert all(hooks)
            if raises:
                raise KeyError
    except KeyError:
        assert raises
    assert all(vars(owner)[name] is old for (owner, name), old in zip(PATCHED, before, strict=True))
    assert not any(hooks)
    assert not torch.nn.modules.module._global_parameter_registration_hooks
