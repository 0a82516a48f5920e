"""The losses of two towers are collected in a list and averaged."""

import torch
from torch import nn

torch.manual_seed(0)
tower_a = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
tower_b = nn.Sequential(nn.Linear(6, 16), nn.ELU(), nn.Linear(16, 1))
optimizer = torch.optim.Adam([{"params": tower_a.parameters()}, {"params": tower_b.parameters(), "lr": 1e-4}], lr=1e-3)


def train_step(x, y):
    losses = [nn.functional.mse_loss(tower(x), y) for tower in (tower_a, tower_b)]
    total = torch.stack(losses).mean()
    optimizer.zero_grad()
    total.backward()
    optimizer.step()
    return total.item()


for _ in range(4):
    features = torch.randn(16, 6)
    train_step(features, features[:, :1] * features[:, 1:2])
