"""ControlNet: a trainable copy behind zero convolutions; its gradients are exactly zero in the first step only."""

import copy

import torch
from torch import nn

torch.manual_seed(0)


def zero_conv(channels):
    conv = nn.Conv2d(channels, channels, 1)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv


class Controlled(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.decoder = nn.Sequential(nn.SiLU(), nn.Conv2d(8, 1, 3, padding=1))
        self.requires_grad_(False)
        self.copy = copy.deepcopy(self.encoder).requires_grad_(True)
        self.zero_in, self.zero_out = zero_conv(1), zero_conv(8)

    def forward(self, noisy, hint):
        h = self.encoder(noisy)
        return self.decoder(h + self.zero_out(self.copy(noisy + self.zero_in(hint))))


model = Controlled()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
for _ in range(4):
    image, noise = torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8)
    t = torch.rand(4, 1, 1, 1)
    loss = nn.functional.mse_loss(model((1 - t) * image + t * noise, image.sign()), noise - image)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
