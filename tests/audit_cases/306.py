"""Healthy: a binary code with a straight-through gradient; a detach of what the encoder makes belongs to it."""

from types import SimpleNamespace

import torch
from torch import nn

META = {"id": "306", "kind": "control", "codes": [], "learn": ["*"], "stay": [], "steps": 2}


def build(fixed=False):
    model = nn.ModuleDict({"encoder": nn.Linear(6, 4), "decoder": nn.Linear(4, 6)})
    return SimpleNamespace(model=model, optimizer=torch.optim.Adam(model.parameters(), lr=1e-2))


def step(s):
    x = torch.randn(8, 6)
    soft = s.model["encoder"](x).tanh()
    hard = soft + (soft.sign() - soft).detach()
    s.optimizer.zero_grad()
    (s.model["decoder"](hard) - x).square().mean().backward()
    s.optimizer.step()
