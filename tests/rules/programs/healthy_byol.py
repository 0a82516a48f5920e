"""BYOL: the target is an average, moved by hand through .data, its BatchNorm buffers too; it has no gradient."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)
online = nn.Sequential(nn.Linear(10, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 8))
predictor = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
target = copy.deepcopy(online).eval()
for p in target.parameters():
    p.requires_grad = False
optimizer = torch.optim.AdamW([*online.parameters(), *predictor.parameters()], lr=1e-3)


@torch.no_grad()
def follow(tau):
    for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
        slow.data = tau * slow.data + (1 - tau) * fast.data
    for slow, fast in zip(target.buffers(), online.buffers(), strict=True):
        slow.copy_(fast)


for _ in range(4):
    x = torch.randn(32, 10)
    views = x + 0.1 * torch.randn_like(x), x * (torch.rand_like(x) > 0.1)
    with torch.no_grad():
        targets = [F.normalize(target(view), dim=-1) for view in views]
    predictions = [F.normalize(predictor(online(view)), dim=-1) for view in views]
    loss = sum((2 - 2 * (p * t).sum(-1)).mean() for p, t in zip(predictions, reversed(targets), strict=True))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    follow(0.99)
