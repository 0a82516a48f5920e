import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from frostline.errors import StepError
from frostline.proof import gradients_of, prove_step


def net(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Dropout(dropout), nn.BatchNorm1d(64), nn.Linear(64, 1))


X = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))


def plain_step(model, x=X):
    loss = model(x).square().mean()
    loss.backward()
    return loss


def test_checkpointing_is_exact_also_with_dropout():
    model = net(dropout=0.3)

    def treated():
        loss = model[3:](checkpoint(model[:3], X, use_reentrant=False)).square().mean()
        loss.backward()
        return loss

    report = prove_step(lambda: plain_step(model), treated, model)
    assert report.proof_class == "EXACT" and report.loss_difference == 0.0
    assert len(report.per_parameter) == 6


def test_micro_batches_are_rounding_against_the_measured_floor():
    model = net()[:2]

    def treated():
        losses = [model(x).square().mean() / 4 for x in X.chunk(4)]
        for loss in losses:
            loss.backward()
        return sum(loss.item() for loss in losses)

    def reference():
        twin = copy.deepcopy(model).double()
        plain_step(twin, X.double())
        return gradients_of(twin)

    report = prove_step(lambda: plain_step(model), treated, model, reference=reference)
    assert report.proof_class == "ROUNDING"
    assert 0 < report.noise_floor < 1e-5 and 0 <= report.loss_difference < 1e-5


def test_a_cut_is_told_by_the_parameters_it_starves():
    model = net()

    def treated():
        with torch.no_grad():
            features = model[:4](X)
        loss = model[4](features).square().mean()
        loss.backward()
        return loss

    report = prove_step(lambda: plain_step(model), treated, model)
    assert report.proof_class == "BOUNDED"
    assert {d.name for d in report.per_parameter if not d.equal} == {
        "0.weight",
        "0.bias",
        "3.weight",
        "3.bias",
    }


def test_whole_training_steps_can_be_compared_and_leave_no_trace():
    model = net(dropout=0.3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)

    def step():
        loss = plain_step(model)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = prove_step(step, step, model, optimizers=[optimizer])
    assert report.proof_class == "EXACT" and report.worst is not None
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight)) and not optimizer.state
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())


def test_where_nothing_trains_there_is_nothing_to_prove():
    model = net().requires_grad_(False)
    report = prove_step(lambda: model(X).mean(), lambda: model(X).mean(), model)
    assert (report.proof_class, report.worst, report.per_parameter) == ("none", None, ())


def test_a_step_that_hides_its_loss_is_refused():
    with pytest.raises(StepError, match=r"returned NoneType, not its loss\n  do     return the loss"):
        prove_step(lambda: None, lambda: None, net())
