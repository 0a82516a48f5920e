"""Whole training steps leave no trace."""

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, SequentialLR, StepLR

from frostline.memory import measure
from frostline.proof import prove_step
from frostline.regions import rehearsal


def scaled():
    """A step under a scaler that grows with every update, of a student with an averaged teacher, and its parts."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"student": nn.Linear(4, 4), "teacher": nn.Linear(4, 4)})
    model["teacher"].requires_grad_(False)
    optimizer = torch.optim.SGD(model["student"].parameters(), 0.1)
    scaler = GradScaler("cpu", init_scale=2.0**10, growth_interval=1)
    x = torch.randn(8, 4)

    def step():
        loss = (model["student"](x) - model["teacher"](x)).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        for averaged, value in zip(model["teacher"].parameters(), model["student"].parameters(), strict=True):
            averaged.data.mul_(0.9).add_(value.data, alpha=0.1)
        return loss.detach()

    return model, optimizer, scaler, step


def test_two_steps_under_a_scaler_are_the_same_step():
    model, optimizer, scaler, step = scaled()
    report = prove_step(step, step, model, optimizers=[optimizer])
    assert report.proof_class == "EXACT" and report.loss_difference == 0
    assert scaler.get_scale() == 2.0**10


def test_an_averaged_teacher_and_a_scaler_are_put_back():
    model, optimizer, scaler, step = scaled()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure(step, model, optimizers=optimizer)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert scaler.get_scale() == 2.0**10
    step()
    assert not torch.equal(model["teacher"].weight, before["teacher.weight"]) and scaler.get_scale() == 2.0**11


def test_a_frozen_parameter_that_is_given_another_tensor_is_put_back():
    model = nn.Linear(4, 4).requires_grad_(False)
    weight, values = model.weight, model.weight.clone()
    with rehearsal(model):
        model.weight.data = torch.zeros(4, 4)
        model.weight.add_(1)
    assert model.weight is weight and torch.equal(weight, values)


def test_tied_frozen_parameters_and_an_exception():
    model = nn.ModuleList([nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)]).requires_grad_(False)
    model[1].weight.data = model[0].weight.data
    values = model[0].weight.clone()
    with pytest.raises(KeyError), rehearsal(model):
        torch._foreach_mul_([model[1].weight], 2.0)
        raise KeyError
    assert torch.equal(model[0].weight, values) and torch.equal(model[1].weight, values)


def schedules(optimizer):
    yield StepLR(optimizer, 1, gamma=0.5)
    yield OneCycleLR(optimizer, 1.0, total_steps=10)
    yield ReduceLROnPlateau(optimizer, patience=0)
    yield SequentialLR(optimizer, [StepLR(optimizer, 1), StepLR(optimizer, 2)], [3])


@pytest.mark.parametrize("number", range(4))
def test_learning_rate_schedules_go_back(number):
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)
    schedule = list(schedules(optimizer))[number]
    arguments = (1.0,) if isinstance(schedule, ReduceLROnPlateau) else ()
    before, rate = schedule.state_dict(), optimizer.param_groups[0]["lr"]
    before = {key: list(value) if isinstance(value, list) else value for key, value in before.items()}
    with rehearsal(nn.Linear(2, 2), [optimizer]):
        for _ in range(3):
            optimizer.step()
            schedule.step(*arguments)
    assert schedule.last_epoch == before["last_epoch"] and optimizer.param_groups[0]["lr"] == rate
    assert {k: v for k, v in schedule.state_dict().items() if k != "_schedulers"} == {
        k: v for k, v in before.items() if k != "_schedulers"
    }
