"""Elastic weight consolidation: squared gradients of the old task weigh the distance from its weights."""

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
fisher = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
for _ in range(3):
    model.zero_grad()
    nn.functional.cross_entropy(model(torch.randn(4, 4)), torch.randint(2, (4,))).backward()
    for name, p in model.named_parameters():
        fisher[name] += p.grad.detach() ** 2
old = {name: p.detach().clone() for name, p in model.named_parameters()}
for _ in range(4):
    loss = nn.functional.cross_entropy(model(torch.randn(4, 4)), torch.randint(2, (4,)))
    for name, p in model.named_parameters():
        loss = loss + 10 * (fisher[name] * (p - old[name]).pow(2)).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
