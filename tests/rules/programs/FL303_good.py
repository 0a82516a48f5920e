"""Gradual freezing; gradients are cleared by hand, for what requires grad."""

import torch
from torch import nn

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2))
optimizer = torch.optim.RMSprop(net.parameters(), lr=1e-3)


def clear_gradients():
    for p in net.parameters():
        p.grad = None


def freeze_first_layer():
    for p in net[0].parameters():
        p.requires_grad = False


for step in range(5):
    clear_gradients()
    x, y = torch.randn(16, 8), torch.randint(2, (16,))
    nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()
    if step == 0:
        freeze_first_layer()
