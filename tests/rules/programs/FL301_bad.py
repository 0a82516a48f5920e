"""Distillation from a frozen teacher that nobody put into eval mode."""

import torch
from torch import nn

torch.manual_seed(0)


def mlp(width):
    return nn.Sequential(nn.Linear(12, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 4))


teacher, student = mlp(64), mlp(8)
for p in teacher.parameters():
    p.requires_grad = False
student.train()
optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
for _ in range(4):
    x = 2 * torch.randn(32, 12) + 1
    with torch.no_grad():
        soft = (teacher(x) / 3).softmax(-1)  # <- FL301
    loss = nn.functional.cross_entropy(student(x) / 3, soft)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
