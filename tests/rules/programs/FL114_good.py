"""Learned feature selection: a hard mask from scores."""

import torch
from torch import nn

torch.manual_seed(0)


class Selector(nn.Module):
    def __init__(self, num_features=12):
        super().__init__()
        self.score = nn.Parameter(torch.randn(num_features))
        self.out = nn.Linear(num_features, 1)

    @property
    def mask(self):
        soft = self.score.sigmoid()
        return (self.score > 0).float() - soft.detach() + soft

    def forward(self, x):
        return self.out(self.mask * x)


net = Selector()
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for _ in range(4):
    x = torch.randn(64, 12)
    loss = nn.functional.mse_loss(net(x), x[:, :3].sum(1, keepdim=True))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
