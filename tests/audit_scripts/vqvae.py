"""VQ-VAE on blobs: straight-through codes, a codebook loss and a commitment loss."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class VectorQuantizer(nn.Module):
    def __init__(self, num_codes: int, dim: int, beta: float) -> None:
        super().__init__()
        self.codebook = nn.Embedding(num_codes, dim)
        self.beta = beta

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = z.permute(0, 2, 3, 1).contiguous()
        flat = z.view(-1, z.size(-1))
        distances = (
            flat.pow(2).sum(1, keepdim=True) + self.codebook.weight.pow(2).sum(1) - 2 * flat @ self.codebook.weight.t()
        )
        indices = distances.argmin(1)
        quantized = self.codebook(indices).view(z.shape)
        codebook_loss = F.mse_loss(quantized, z.detach())
        commitment_loss = F.mse_loss(z, quantized.detach())
        quantized = z + (quantized - z).detach()
        return quantized.permute(0, 3, 1, 2), codebook_loss + self.beta * commitment_loss, indices


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class VQVAE(nn.Module):
    def __init__(self, width: int, num_codes: int, beta: float) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, width, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(width, width, 4, 2, 1),
            ResidualBlock(width),
            nn.BatchNorm2d(width),
        )
        self.quantizer = VectorQuantizer(num_codes, width, beta)
        self.decoder = nn.Sequential(
            ResidualBlock(width),
            nn.ConvTranspose2d(width, width, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(width, 1, 4, 2, 1),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z_q, vq_loss, indices = self.quantizer(self.encoder(x))
        return self.decoder(z_q), vq_loss, indices


def blobs(batch: int) -> Tensor:
    grid = torch.linspace(-1, 1, 16)
    centre = torch.rand(batch, 2) * 1.2 - 0.6
    square = (grid[None, :, None] - centre[:, :1, None]) ** 2 + (grid[None, None, :] - centre[:, 1:, None]) ** 2
    return torch.exp(-square / 0.1).unsqueeze(1)


def perplexity(indices: Tensor, num_codes: int) -> float:
    usage = F.one_hot(indices, num_codes).float().mean(0)
    return torch.exp(-(usage * (usage + 1e-10).log()).sum()).item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--iterations", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--num-codes", type=int, default=32)
    parser.add_argument("--beta", type=float, default=0.25)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    model = VQVAE(args.width, args.num_codes, args.beta)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, amsgrad=True)
    variance = blobs(256).var()
    model.train()
    for step in range(args.iterations):
        data = blobs(args.batch_size)
        optimizer.zero_grad()
        reconstruction, vq_loss, indices = model(data)
        recon_error = F.mse_loss(reconstruction, data) / variance
        loss = recon_error + vq_loss
        loss.backward()
        optimizer.step()
        if step % 5 == 4:
            used = perplexity(indices, args.num_codes)
            print(f"step {step} recon {recon_error.item():.4f} vq {vq_loss.item():.4f} perplexity {used:.1f}")
