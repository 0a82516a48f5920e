"""A frozen teacher in train mode on purpose: momentum 0, so batch statistics are used and its buffers stay."""

import torch
from torch import nn

torch.manual_seed(0)
teacher = nn.Sequential(nn.Linear(10, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 5))
student = nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5))
for module in teacher.modules():
    if isinstance(module, nn.BatchNorm1d):
        module.momentum = 0.0
teacher.requires_grad_(False).train()
optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
kl = nn.KLDivLoss(reduction="batchmean", log_target=True)
for _ in range(4):
    x = torch.randn(64, 10)
    loss = 4.0 * kl((student(x) / 2).log_softmax(-1), (teacher(x) / 2).log_softmax(-1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
