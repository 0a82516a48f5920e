"""An adapter is added to a frozen model after the optimizer was made."""

from types import SimpleNamespace

import torch
from torch import nn

META = {
    "id": "302",
    "kind": "fault",
    "codes": ["not-in-optimizer"],
    "learn": ["adapter.*", "head.*"],
    "stay": ["body.*"],
}


def build(fixed=False):
    model = nn.ModuleDict({"body": nn.Linear(6, 6).requires_grad_(False), "head": nn.Linear(6, 2)})
    if fixed:
        model["adapter"] = nn.Linear(6, 6, bias=False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    if not fixed:
        model["adapter"] = nn.Linear(6, 6, bias=False)  # FAULT
    return SimpleNamespace(model=model, optimizer=optimizer)


def step(s):
    x = torch.randn(8, 6)
    s.optimizer.zero_grad()
    s.model["head"](s.model["body"](x) + s.model["adapter"](x)).square().mean().backward()
    s.optimizer.step()
