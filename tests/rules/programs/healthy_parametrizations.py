"""Weight norm and spectral norm, old and new style: the weight in use is computed from others at every forward."""

import torch
from torch import nn
from torch.nn.utils import parametrizations

torch.manual_seed(0)


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = parametrizations.spectral_norm(nn.Conv1d(1, 8, 5, stride=2))
        self.conv2 = parametrizations.weight_norm(nn.Conv1d(8, 8, 5, stride=2))
        self.mix = parametrizations.orthogonal(nn.Linear(8, 8, bias=False))
        self.out = nn.utils.spectral_norm(nn.Linear(8, 1))

    def forward(self, x):
        h = self.conv2(self.conv1(x).relu()).relu().mean(-1)
        return self.out(self.mix(h))


model = Discriminator()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for _ in range(4):
    x = torch.cat([torch.randn(8, 1, 40), torch.rand(8, 1, 40).cumsum(-1) / 10])
    y = torch.cat([torch.zeros(8, 1), torch.ones(8, 1)])
    loss = nn.functional.binary_cross_entropy_with_logits(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
