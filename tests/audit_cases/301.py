"""A gate multiplied in through `.data` never learns to open."""

from types import SimpleNamespace

import torch
from torch import nn

META = {"id": "301", "kind": "fault", "codes": ["grad-cut/detach"], "learn": ["*"], "stay": []}


class Gated(nn.Module):
    def __init__(self, fixed):
        super().__init__()
        self.body, self.head, self.gate = nn.Linear(6, 6), nn.Linear(6, 2), nn.Parameter(torch.ones(6))
        self.fixed = fixed

    def forward(self, x):
        gate = self.gate if self.fixed else self.gate.data  # FAULT
        return self.head(self.body(x) * gate)


def build(fixed=False):
    model = Gated(fixed)
    return SimpleNamespace(model=model, optimizer=torch.optim.Adam(model.parameters(), lr=1e-2))


def step(s):
    s.optimizer.zero_grad()
    s.model(torch.randn(8, 6)).square().mean().backward()
    s.optimizer.step()
