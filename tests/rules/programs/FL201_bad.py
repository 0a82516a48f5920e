# options: --learn '*'
"""Parameter groups for weight decay: what has one dimension is in neither."""

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(9, 24), nn.LayerNorm(24), nn.GELU(), nn.Linear(24, 3))  # <- FL201


def make_optimizer(model):
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    groups = [{"params": matrices, "weight_decay": 0.1}]
    return torch.optim.AdamW(groups, lr=1e-3)  # <- FL201


optimizer = make_optimizer(model)  # <- FL201
for _ in range(4):
    loss = nn.functional.cross_entropy(model(torch.randn(16, 9)), torch.randint(3, (16,)))
    model.zero_grad()
    loss.backward()
    optimizer.step()
