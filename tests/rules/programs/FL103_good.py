"""A generator that augments its batches without grad; the head enables grad for itself."""

import torch
from torch import nn

torch.manual_seed(0)


@torch.no_grad()
def batches(num_batches):
    for _ in range(num_batches):
        x = torch.randn(16, 8)
        yield (x - x.mean(0)) / x.std(0), torch.randint(3, (16,))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
        self.head = nn.Linear(16, 3)

    @torch.enable_grad()
    def loss(self, h, y):
        return nn.functional.cross_entropy(self.head(h), y)

    def forward(self, x, y):
        return self.loss(self.encoder(x), y)


model = Model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for x, y in batches(4):
    optimizer.zero_grad()
    model(x, y).backward()
    optimizer.step()
