"""Healthy: a teacher that averages the student's weights, in no optimizer, and moves under no_grad."""

import copy
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F

META = {"id": "307", "kind": "control", "codes": [], "learn": ["student.*"], "stay": [], "steps": 2}


def build(fixed=False):
    student = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    model = nn.ModuleDict({"student": student, "teacher": copy.deepcopy(student).requires_grad_(False)})
    return SimpleNamespace(model=model, optimizer=torch.optim.SGD(student.parameters(), lr=0.1))


def step(s):
    x = torch.randn(8, 6)
    with torch.no_grad():
        target = s.model["teacher"](x)
    s.optimizer.zero_grad()
    F.mse_loss(s.model["student"](x + 0.1 * torch.randn_like(x)), target).backward()
    s.optimizer.step()
    with torch.no_grad():
        for old, new in zip(s.model["teacher"].parameters(), s.model["student"].parameters(), strict=True):
            old.lerp_(new, 0.01)
