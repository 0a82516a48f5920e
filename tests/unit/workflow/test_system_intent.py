"""What a system means to train, as its audit is told."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.errors import StepError
from frostline.workflow.audit import audit_workload


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).requires_grad_(False)
        self.head = nn.ModuleDict({"old": nn.Linear(4, 4).requires_grad_(False), "new": nn.Linear(4, 1)})
        self.scale = nn.Parameter(torch.ones(4), requires_grad=False)

    def forward(self, x):
        return self.head["new"](self.head["old"](self.trunk(x) * self.scale))


def system(held, *, train=False):
    """A step of `Parts` whose optimizer holds what `held` says, and the system it belongs to."""
    torch.manual_seed(0)
    model = Parts().train(train)
    optimizer = torch.optim.SGD(held(model), lr=0.1)
    x = torch.randn(8, 4)

    def step():
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    work = fl.Workload(step=step, model=model, optimizers=(optimizer,), inputs=[x])
    return work, SimpleNamespace(phases=(SimpleNamespace(parameters=held(model)),))


def faults(work, what, **declared):
    before = {name: tensor.clone() for name, tensor in work.model.state_dict().items()}
    report = audit_workload(work, what, **declared)
    assert all(torch.equal(tensor, before[name]) for name, tensor in work.model.state_dict().items())
    assert all(parameter.grad is None for parameter in work.model.parameters())
    return {finding.code: finding for finding in report.faults}


def test_a_step_that_trains_what_its_phases_hold_has_no_fault():
    assert faults(*system(lambda model: list(model.head["new"].parameters()))) == {}


def test_what_no_phase_trains_must_stay():
    found = faults(*system(lambda model: list(model.head["new"].parameters()), train=True))
    assert set(found) == {"FL301"}, "a frozen BatchNorm in training mode"

    work, what = system(lambda model: list(model.head["new"].parameters()))
    work.model.scale.requires_grad_(True)
    work.optimizers[0].add_param_group({"params": [work.model.scale]})
    found = faults(work, what, learn="head.new.*", stay=("trunk.*", "scale"))
    assert found["FL215"].parameters == ("scale",)


def test_what_the_optimizers_hold_must_learn():
    work, what = system(lambda model: [*model.head["new"].parameters(), *model.head["old"].parameters()])
    found = faults(work, what)
    assert set(found["FL214"].parameters) == {"head.old.weight", "head.old.bias"}


def test_declared_intent_replaces_the_systems_own():
    def head(model):
        return list(model.head["new"].parameters())

    assert set(faults(*system(head), stay="head.new.*")) == {"FL215"}
    assert set(faults(*system(head), learn="head.*")) == {"FL214"}


def test_a_step_that_cannot_run_says_so():
    work, what = system(lambda model: list(model.head["new"].parameters()))
    broken = fl.Workload(step=lambda: 1 / 0, model=work.model, optimizers=work.optimizers, inputs=[])
    with pytest.raises(StepError, match="ZeroDivisionError"):
        audit_workload(broken, what)
