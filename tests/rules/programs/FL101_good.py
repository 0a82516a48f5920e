"""A diffusion model whose learned noise schedule is used inside a helper."""

import torch
from torch import nn

torch.manual_seed(0)


class Diffusion(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Linear(1, 1)
        self.denoise = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 2))

    @torch.no_grad()
    def noise_like(self, x):
        return torch.randn_like(x)

    def diffuse(self, x, t):
        signal = torch.sigmoid(self.gamma(t))
        noise = self.noise_like(x)
        return signal.sqrt() * x + (1 - signal).sqrt() * noise, noise

    def forward(self, x):
        t = torch.rand(len(x), 1)
        noisy, noise = self.diffuse(x, t)
        return (self.denoise(torch.cat([noisy, t], dim=1)) - noise).square().mean()


model = Diffusion()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for x in torch.randn(4, 32, 2):
    optimizer.zero_grad()
    loss = model(x)
    loss.backward()
    optimizer.step()
