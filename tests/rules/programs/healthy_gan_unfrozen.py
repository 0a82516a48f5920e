"""GAN without freezing: the generator's loss fills the discriminator's gradients, which are cleared before its step."""

import itertools

import torch
from torch import nn

torch.manual_seed(0)


def mlp(*widths):
    layers = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers[:-1])


net_g, net_d = mlp(4, 32, 2), mlp(2, 32, 1)
optimizer_g = torch.optim.Adam(net_g.parameters(), lr=2e-4, betas=(0.5, 0.999))
optimizer_d = torch.optim.Adam(net_d.parameters(), lr=2e-4, betas=(0.5, 0.999))
criterion = nn.BCEWithLogitsLoss()
for _ in range(4):
    label = torch.full((16, 1), 1.0)
    net_d.zero_grad()
    error_real = criterion(net_d(torch.randn(16, 2)), label)
    error_real.backward()
    fake = net_g(torch.randn(16, 4))
    label.fill_(0.0)
    error_fake = criterion(net_d(fake.detach()), label)
    error_fake.backward()
    error_d = error_real + error_fake
    optimizer_d.step()

    net_g.zero_grad()
    label.fill_(1.0)
    error_g = criterion(net_d(fake), label)
    error_g.backward()
    optimizer_g.step()
    log = f"{error_d.item():.3f} {error_g.item():.3f}"
