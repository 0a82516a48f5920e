"""WGAN-GP: a leaf between fake and real, a gradient with create_graph, and a last bias whose gradient is zero."""

import torch
from torch import nn

torch.manual_seed(0)
generator = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
critic = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
opt_g = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.0, 0.9))
opt_c = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.0, 0.9))


def gradient_penalty(real, fake):
    mix = torch.rand(len(real), 1)
    between = (mix * real + (1 - mix) * fake).requires_grad_(True)
    score = critic(between)
    (slope,) = torch.autograd.grad(score, between, torch.ones_like(score), create_graph=True, retain_graph=True)
    return (slope.norm(2, dim=1) - 1).square().mean()


for step in range(6):
    real = torch.randn(32, 2) + torch.tensor([2.0, -1.0])
    with torch.no_grad():
        fake = generator(torch.randn(32, 8))
    opt_c.zero_grad()
    critic_loss = critic(fake).mean() - critic(real).mean() + 10 * gradient_penalty(real, fake)
    critic_loss.backward()
    opt_c.step()
    if step % 2 == 1:
        opt_g.zero_grad()
        generator_loss = -critic(generator(torch.randn(32, 8))).mean()
        generator_loss.backward()
        opt_g.step()
