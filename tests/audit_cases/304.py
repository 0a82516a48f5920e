"""Only one of two optimizers clears its gradients."""

from types import SimpleNamespace

import torch
from torch import nn

META = {"id": "304", "kind": "fault", "codes": ["grad-not-cleared"], "learn": ["*"], "stay": [], "steps": 3}


def build(fixed=False):
    model = nn.ModuleDict({"encoder": nn.Linear(6, 4), "decoder": nn.Linear(4, 6)})
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.01) for part in model.values()]
    return SimpleNamespace(model=model, optimizers=optimizers, fixed=fixed)


def step(s):
    x = torch.randn(8, 6)
    loss = (s.model["decoder"](s.model["encoder"](x).tanh()) - x).square().mean()
    for optimizer in s.optimizers if s.fixed else s.optimizers[:1]:
        optimizer.zero_grad()
    loss.backward()  # FAULT
    for optimizer in s.optimizers:
        optimizer.step()
