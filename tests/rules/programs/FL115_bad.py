"""A detector of spam with one logit and the loss for several."""

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.EmbeddingBag(50, 8), nn.ReLU(), nn.Linear(8, 1))
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(4):
    words, spam = torch.randint(50, (16, 6)), torch.randint(2, (16, 1)).float()
    logit = model(words)
    loss = criterion(logit, spam)  # <- FL115
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
