"""Triplet loss: easy triplets give a gradient of exactly zero, and the last bias never has one (distances)."""

import torch
from torch import nn

torch.manual_seed(0)
embed = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))
optimizer = torch.optim.SGD(embed.parameters(), lr=0.01)
criterion = nn.TripletMarginLoss(margin=0.05)
for step in range(4):
    anchor = torch.randn(8, 6)
    distance = 0.0 if step % 2 == 0 else 6.0
    positive = anchor + 0.001 * torch.randn(8, 6)
    negative = anchor + 0.001 * torch.randn(8, 6) + distance
    loss = criterion(embed(anchor), embed(positive), embed(negative))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
