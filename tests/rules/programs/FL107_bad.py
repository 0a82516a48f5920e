"""A pipeline of two stages, each with its own optimizer; the border is a fresh leaf."""

import torch
from torch import nn

torch.manual_seed(0)
stages = [nn.Sequential(nn.Linear(12, 24), nn.ReLU()), nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4))]
optimizers = [torch.optim.SGD(stage.parameters(), lr=0.1, momentum=0.9) for stage in stages]

for _ in range(4):
    x, y = torch.randn(16, 12), torch.randint(4, (16,))
    for optimizer in optimizers:
        optimizer.zero_grad()
    sent = stages[0](x)
    received = sent.detach().requires_grad_(True)  # <- FL107
    loss = nn.functional.cross_entropy(stages[1](received), y)
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
