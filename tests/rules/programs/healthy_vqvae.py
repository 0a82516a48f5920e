"""VQ-VAE: argmin, detach on both sides, straight-through; a code without a member gets a zero row of gradient."""

import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)


class VectorQuantizer(nn.Module):
    def __init__(self, num_codes=16, width=4):
        super().__init__()
        self.codebook = nn.Embedding(num_codes, width)
        nn.init.uniform_(self.codebook.weight, -1 / num_codes, 1 / num_codes)

    def forward(self, z):
        index = torch.cdist(z, self.codebook.weight).argmin(-1)
        q = self.codebook(index)
        codebook = F.mse_loss(q, z.detach())
        commitment = F.mse_loss(z, q.detach())
        return z + (q - z).detach(), codebook + 0.25 * commitment, index


class VQVAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        self.quantizer = VectorQuantizer()
        self.decoder = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 16))

    def forward(self, x):
        q, vq_loss, index = self.quantizer(self.encoder(x))
        return self.decoder(q), vq_loss, index


model = VQVAE()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for _ in range(4):
    x = torch.randn(64, 16)
    reconstruction, vq_loss, index = model(x)
    loss = F.mse_loss(reconstruction, x) + vq_loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    perplexity = torch.bincount(index, minlength=16).float().div(64).clamp_min(1e-9).log().neg().mean().exp().item()
