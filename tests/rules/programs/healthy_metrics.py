"""Losses logged by .item(), metrics by numpy, a confusion matrix, an early stop decided on a float."""

import numpy as np
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
log, confusion, best = [], np.zeros((4, 4), dtype=int), float("inf")
for _ in range(5):
    x, y = torch.randn(32, 12), torch.randint(4, (32,))
    logits = model(x)
    loss = nn.functional.cross_entropy(logits, y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    predicted = logits.detach().argmax(1).numpy()
    np.add.at(confusion, (y.numpy(), predicted), 1)
    log.append({"loss": loss.item(), "accuracy": float(np.mean(predicted == y.numpy())), "logits": logits.tolist()})
    with torch.inference_mode():
        validation = nn.functional.cross_entropy(model(x), y).item()
    if validation > 10 * best:
        break
    best = min(best, validation)
