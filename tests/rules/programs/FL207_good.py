# options: --learn 'model.*'
"""The result of the normalisation is overwritten by the next line."""

import torch
from torch import nn

torch.manual_seed(0)


class Block(nn.Module):
    def __init__(self, width=12):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Conv1d(width, width, 3, padding=1)

    def forward(self, x):
        h = self.norm(x)
        h = self.mix(h.transpose(1, 2)).transpose(1, 2)
        return x + h.relu()


model = Block()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for _ in range(4):
    x = torch.randn(8, 10, 12)
    loss = nn.functional.smooth_l1_loss(model(x), x.roll(1, dims=1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
