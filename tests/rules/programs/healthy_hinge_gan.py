"""Hinge GAN: a sure discriminator has a gradient of exactly zero for some batches, and its optimizer steps on."""

import torch
from torch import nn

torch.manual_seed(0)
generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
discriminator = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
opt_g = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.0, 0.9))
opt_d = torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.0, 0.9))
for step in range(4):
    sharpness = 1.0 if step % 2 == 0 else 1e4
    real = torch.randn(16, 2) + 2
    real_score = sharpness * discriminator(real).abs()
    fake_score = -sharpness * discriminator(generator(torch.randn(16, 4)).detach()).abs()
    d_loss = (1 - real_score).relu().mean() + (1 + fake_score).relu().mean()
    opt_d.zero_grad()
    d_loss.backward()
    opt_d.step()

    g_loss = -discriminator(generator(torch.randn(16, 4))).square().mean()
    opt_g.zero_grad()
    g_loss.backward()
    opt_g.step()
