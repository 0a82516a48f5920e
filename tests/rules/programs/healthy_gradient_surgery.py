"""Two tasks whose conflicting gradients are projected by hand: each backward is read before it is cleared."""

import torch
from torch import nn

torch.manual_seed(0)
trunk = nn.Sequential(nn.Linear(6, 16), nn.Tanh())
heads = nn.ModuleList(nn.Linear(16, 1) for _ in range(2))
optimizer = torch.optim.Adam([*trunk.parameters(), *heads.parameters()])
shared = list(trunk.parameters())
for _ in range(4):
    hidden = trunk(torch.randn(8, 6))
    gradients = []
    optimizer.zero_grad()
    for goal, head in enumerate(heads):
        trunk.zero_grad()
        (head(hidden) - goal).pow(2).mean().backward(retain_graph=True)
        gradients.append([p.grad.clone() for p in shared])
    for parameter, first, second in zip(shared, *gradients, strict=True):
        overlap = (first * second).sum().clamp(max=0) / second.pow(2).sum()
        parameter.grad = first - overlap * second + second
    optimizer.step()
