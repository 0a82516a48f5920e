"""Two networks on one batch, each with a loss of its own: the second graph waits while the first goes backward."""

import torch
from torch import nn

torch.manual_seed(0)
nets = [nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 3)) for _ in range(2)]
optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in nets]
for _ in range(3):
    x, y = torch.randn(64, 10), torch.randint(3, (64,))
    outputs = [net(x) for net in nets]
    for output, optimizer in zip(outputs, optimizers, strict=True):
        loss = nn.functional.cross_entropy(output, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
