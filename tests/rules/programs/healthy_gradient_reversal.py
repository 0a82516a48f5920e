"""Domain-adversarial training: a Function that hands back the negative gradient, and None for a plain number."""

import torch
from torch import nn

torch.manual_seed(0)


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, strength):
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad_output):
        return -ctx.strength * grad_output, None


class DANN(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(10, 32), nn.ReLU())
        self.label, self.domain = nn.Linear(32, 5), nn.Linear(32, 2)

    def forward(self, x, strength):
        h = self.features(x)
        return self.label(h), self.domain(Reverse.apply(h, strength))


model = DANN()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
for step in range(4):
    source, target = torch.randn(16, 10), torch.randn(16, 10) + 0.5
    labels, domains = torch.randint(5, (16,)), torch.arange(32) // 16
    y, d = model(torch.cat([source, target]), strength=step / 4)
    loss = nn.functional.cross_entropy(y[:16], labels) + nn.functional.cross_entropy(d, domains)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
