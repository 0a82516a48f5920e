"""Gradient accumulation: most backwards are followed by no update and no zero_grad, on purpose."""

import contextlib

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
accumulate = 4
model = nn.Sequential(nn.Linear(10, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 3))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
loader = DataLoader(TensorDataset(torch.randn(64, 10), torch.randint(3, (64,))), batch_size=4, shuffle=True)
optimizer.zero_grad()
for index, (x, y) in enumerate(loader):
    last = (index + 1) % accumulate == 0
    with contextlib.nullcontext():
        loss = nn.functional.cross_entropy(model(x), y) / accumulate
        loss.backward()
    if last:
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
