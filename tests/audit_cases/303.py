"""A frozen teacher in training mode: its BatchNorm drifts away from what it was trained with."""

from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F

META = {
    "id": "303",
    "kind": "fault",
    "codes": ["frozen-state/batchnorm"],
    "learn": ["student.*"],
    "stay": ["teacher.*"],
    "steps": 2,
}


def build(fixed=False):
    teacher = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)).requires_grad_(False)
    model = nn.ModuleDict({"teacher": teacher, "student": nn.Linear(6, 4)})
    return SimpleNamespace(model=model, optimizer=torch.optim.SGD(model["student"].parameters(), lr=0.1), fixed=fixed)


def step(s):
    s.model.train()  # FAULT
    if s.fixed:
        s.model["teacher"].eval()
    x = torch.randn(8, 6)
    with torch.no_grad():
        target = s.model["teacher"](x)
    s.optimizer.zero_grad()
    F.mse_loss(s.model["student"](x), target).backward()
    s.optimizer.step()
