"""SWA: an averaged model that is moved by hand, its BatchNorm buffers included."""

import torch
from torch import nn
from torch.optim.swa_utils import SWALR, AveragedModel

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
averaged = AveragedModel(model, use_buffers=True)
scheduler = SWALR(optimizer, swa_lr=0.05, anneal_epochs=2)
batches = [(torch.randn(16, 8), torch.randint(2, (16,))) for _ in range(4)]
for x, y in batches:
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    averaged.update_parameters(model)
    scheduler.step()
averaged.eval()
with torch.no_grad():
    correct = sum((averaged(x).argmax(1) == y).sum().item() for x, y in batches)
