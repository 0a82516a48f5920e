"""Freezing parameter by parameter, with a letter missing."""

import torch
from torch import nn

torch.manual_seed(0)
net = nn.ModuleDict({"encoder": nn.LSTM(6, 12, batch_first=True), "pointer": nn.Linear(12, 1)})


def freeze(module):
    for p in module.parameters():
        p.requires_grad = False


freeze(net["encoder"])
optimizer = torch.optim.Adam(filter(lambda p: p.requires_grad, net.parameters()), lr=1e-2)
for _ in range(4):
    sequence = torch.randn(8, 9, 6)
    h, _ = net["encoder"](sequence)
    loss = nn.functional.cross_entropy(net["pointer"](h).squeeze(-1), sequence[..., 0].argmax(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
