"""Class centres are moved by hand under no_grad, a network by its optimizer (centre loss)."""

import torch
from torch import nn

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 4))
centres = torch.randn(5, 4, requires_grad=True)
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
for _ in range(4):
    x, y = torch.randn(32, 10), torch.randint(5, (32,))
    z = net(x)
    pull = (z - centres[y]).square().sum(-1).mean()
    push = (3.0 - torch.pdist(centres)).relu().mean()
    loss = pull + push
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        centres -= 0.5 * centres.grad
    centres.grad = None
