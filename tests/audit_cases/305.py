"""Two heads; the loss of the second is averaged into a number and made a tensor again."""

from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F

META = {"id": "305", "kind": "fault", "codes": ["grad-cut/rewrap", "grad-cut/numpy", "dead-loss-term"], "learn": ["*"]}


def build(fixed=False):
    model = nn.ModuleDict({"body": nn.Linear(6, 8), "colour": nn.Linear(8, 3), "shape": nn.Linear(8, 2)})
    return SimpleNamespace(model=model, optimizer=torch.optim.AdamW(model.parameters(), lr=1e-2), fixed=fixed)


def step(s):
    hidden = s.model["body"](torch.randn(8, 6)).relu()
    losses = [
        F.cross_entropy(s.model["colour"](hidden), torch.randint(3, (8,))),
        F.cross_entropy(s.model["shape"](hidden), torch.randint(2, (8,))),
    ]
    total = torch.stack(losses).mean() if s.fixed else losses[0] + torch.tensor(losses[1].item())  # FAULT
    s.optimizer.zero_grad()
    total.backward()
    s.optimizer.step()
