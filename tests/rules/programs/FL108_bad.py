"""checkpoint_sequential over a convolutional trunk fed with pictures."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint_sequential

torch.manual_seed(0)


def conv(a, b):
    return [nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(2, b), nn.ReLU()]


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(*conv(1, 4), *conv(4, 8), *conv(8, 8), *conv(8, 8))
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        h = checkpoint_sequential(self.trunk, 2, x, use_reentrant=True)  # <- FL108
        return self.fc(h.mean((2, 3)))


model = Classifier()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for _ in range(4):
    digits, label = torch.rand(4, 1, 8, 8), torch.randint(10, (4,))
    loss = nn.functional.cross_entropy(model(digits), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
