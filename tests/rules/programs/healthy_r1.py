"""R1 penalty, lazily, as a step of its own; the real images are made leaves; the generator has an average."""

import copy

import torch
from torch import nn

torch.manual_seed(0)
generator = nn.Sequential(nn.ConvTranspose2d(8, 16, 4), nn.BatchNorm2d(16), nn.ReLU(), nn.ConvTranspose2d(16, 1, 2, 2))
discriminator = nn.Sequential(nn.Conv2d(1, 16, 4, 2), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(144, 1))
average = copy.deepcopy(generator).eval().requires_grad_(False)
opt_g = torch.optim.Adam(generator.parameters(), lr=2e-3)
opt_d = torch.optim.Adam(discriminator.parameters(), lr=2e-3)
softplus = nn.functional.softplus

for step in range(4):
    real = torch.rand(8, 1, 8, 8)
    discriminator.requires_grad_(True)
    generator.requires_grad_(False)
    fake = generator(torch.randn(8, 8, 1, 1))
    opt_d.zero_grad()
    (softplus(discriminator(fake)).mean() + softplus(-discriminator(real)).mean()).backward()
    if step % 2 == 0:
        leaf = real.detach().requires_grad_()
        (slope,) = torch.autograd.grad(discriminator(leaf).sum(), leaf, create_graph=True)
        (0.5 * 10.0 * 2 * slope.square().sum((1, 2, 3)).mean()).backward()
    opt_d.step()

    discriminator.requires_grad_(False)
    generator.requires_grad_(True)
    opt_g.zero_grad()
    softplus(-discriminator(generator(torch.randn(8, 8, 1, 1)))).mean().backward()
    opt_g.step()
    with torch.no_grad():
        for slow, fast in zip(average.state_dict().values(), generator.state_dict().values(), strict=True):
            slow.copy_(torch.lerp(fast, slow, 0.9) if slow.is_floating_point() else fast)
