"""Each head has its optimizer and steps at once; the shared encoder's steps last, on the sum of both losses."""

import torch
from torch import nn

torch.manual_seed(0)
encoder, left, right = nn.Linear(4, 8), nn.Linear(8, 1), nn.Linear(8, 1)
of_encoder, of_left, of_right = (torch.optim.Adam(module.parameters()) for module in (encoder, left, right))
for _ in range(4):
    x = torch.randn(16, 4)
    for optimizer in (of_encoder, of_left, of_right):
        optimizer.zero_grad()
    left(encoder(x).relu()).pow(2).mean().backward()
    of_left.step()
    (right(encoder(x).relu()) - 1).pow(2).mean().backward()
    of_right.step()
    of_encoder.step()
