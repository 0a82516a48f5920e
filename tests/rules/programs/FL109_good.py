"""A functional call on clones that are taken once: they pass the gradient on and keep the first values."""

import torch
from torch import nn
from torch.func import functional_call

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 32), nn.Softplus(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)


def energy(x):
    weights = {name: p.clone() for name, p in model.named_parameters()}
    return functional_call(model, weights, (x,))


for _ in range(4):
    x = torch.randn(32, 4)
    loss = (energy(x).squeeze(1) - x.square().sum(1)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
