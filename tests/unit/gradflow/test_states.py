"""What the audit says of statistics and gradients that a value decides."""

import torch
from torch import nn
from torch.nn import functional as F

from frostline.gradflow import audit


class OwnNorm(nn.Module):
    def __init__(self, always_training):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))
        self.always_training = always_training

    def forward(self, x):
        return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, training=self.always_training)


def frozen_tower(always_training):
    tower = nn.Sequential(nn.Linear(4, 4), OwnNorm(always_training)).requires_grad_(False).eval()
    model = nn.ModuleDict({"tower": tower, "head": nn.Linear(4, 1)})
    optimizer = torch.optim.SGD(model["head"].parameters(), lr=0.1)

    def step():
        optimizer.zero_grad()
        model["head"](model["tower"](torch.randn(8, 4))).square().mean().backward()
        optimizer.step()

    return audit(step, model, optimizer, steps=2)


def test_a_functional_batch_norm_moves_a_frozen_part():
    (fault,) = frozen_tower(True).faults
    assert (fault.code, fault.parameters) == ("FL301", ("tower.1",))
    assert fault.places[0].line == OwnNorm.forward.__code__.co_firstlineno + 1
    assert not frozen_tower(False).findings


def clamped(low, high):
    front, back = nn.Linear(4, 4), nn.Linear(4, 1)
    model = nn.ModuleList([front, back])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step():
        optimizer.zero_grad()
        x = torch.randn(8, 4)
        clipped = front(x).abs().clamp(low, high)
        (back(x).square().mean() + clipped.mean()).backward()
        optimizer.step()

    return audit(step, model, optimizer, steps=2), step.__code__.co_firstlineno + 3


def test_saturation_is_a_note_for_it_depends_on_the_values():
    report, line = clamped(-1, 0)
    (note,) = report.findings
    assert (note.code, note.level, note.parameters) == ("FL114", "note", ("0.bias", "0.weight"))
    assert (note.places[0].line, "flat" in note.what) == (line, True)
    assert not clamped(-1, 9)[0].findings


def test_clipping_reads_no_gradient():
    body, head = nn.Linear(4, 4), nn.Linear(4, 1)
    model = nn.ModuleList([body, head])
    optimizer = torch.optim.SGD(body.parameters(), lr=0.1)

    def step():
        optimizer.zero_grad()
        head.zero_grad()
        head(body(torch.randn(8, 4))).square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    assert "FL501" in {finding.code for finding in audit(step, model, optimizer).findings}
