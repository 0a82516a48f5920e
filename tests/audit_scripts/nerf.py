"""A small NeRF: chunked rays, stratified samples, coarse and fine fields, importance sampling without gradient."""

from __future__ import annotations

import argparse
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NEAR, FAR = 1.0, 3.0


def encode(x: Tensor, num_frequencies: int) -> Tensor:
    angles = x[..., None] * (2.0 ** torch.arange(num_frequencies)) * math.pi
    return torch.cat([x, angles.sin().flatten(-2), angles.cos().flatten(-2)], dim=-1)


class Field(nn.Module):
    def __init__(self, width: int, num_frequencies: int) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        num_in = 3 * (1 + 2 * num_frequencies)
        self.trunk = nn.Sequential(nn.Linear(num_in, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.density, self.colour = nn.Linear(width, 1), nn.Linear(width, 3)

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.trunk(encode(points, self.num_frequencies))
        return F.softplus(self.density(hidden)).squeeze(-1), self.colour(hidden).sigmoid()


def composite(density: Tensor, colour: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
    delta = torch.cat([depth[:, 1:] - depth[:, :-1], torch.full_like(depth[:, :1], 0.1)], dim=1)
    alpha = 1 - torch.exp(-density * delta)
    passed = torch.cumprod(torch.cat([torch.ones_like(alpha[:, :1]), 1 - alpha + 1e-10], dim=1), dim=1)[:, :-1]
    weights = alpha * passed
    return (weights[..., None] * colour).sum(1), weights


def sample_pdf(middles: Tensor, weights: Tensor, num_samples: int) -> Tensor:
    pdf = (weights + 1e-5) / (weights + 1e-5).sum(1, keepdim=True)
    cdf = torch.cat([torch.zeros_like(pdf[:, :1]), pdf.cumsum(1)], dim=1)
    u = torch.rand(len(cdf), num_samples)
    above = torch.searchsorted(cdf, u, right=True).clamp(1, cdf.size(1) - 1)
    low, high = cdf.gather(1, above - 1), cdf.gather(1, above)
    start, end = middles.gather(1, above - 1), middles.gather(1, above)
    return start + (u - low) / (high - low).clamp_min(1e-5) * (end - start)


def render_rays(coarse: Field, fine: Field, origins: Tensor, directions: Tensor, num: int) -> tuple[Tensor, Tensor]:
    edges = torch.linspace(NEAR, FAR, num + 1)
    depth = edges[:-1] + (edges[1:] - edges[:-1]) * torch.rand(len(origins), num)
    rgb_coarse, weights = composite(*coarse(origins[:, None] + directions[:, None] * depth[..., None]), depth)
    middles = 0.5 * (depth[:, 1:] + depth[:, :-1])
    extra = sample_pdf(middles, weights[:, 1:-1], num).detach()
    depth, _ = torch.sort(torch.cat([depth, extra], dim=1), dim=1)
    rgb_fine, _ = composite(*fine(origins[:, None] + directions[:, None] * depth[..., None]), depth)
    return rgb_coarse, rgb_fine


def render(coarse: Field, fine: Field, rays: Tensor, chunk: int, num: int) -> tuple[Tensor, Tensor]:
    parts = [render_rays(coarse, fine, *part.unbind(1), num) for part in rays.split(chunk)]
    rgb_coarse, rgb_fine = zip(*parts, strict=True)
    return torch.cat(rgb_coarse), torch.cat(rgb_fine)


def view(angle: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Rays of a camera on a circle, and the picture of a ball with two colours."""
    eye = torch.stack([2 * angle.cos(), 2 * angle.sin(), torch.zeros(())])
    forward, up = -eye / 2, torch.tensor([0.0, 0.0, 1.0])
    right = torch.linalg.cross(forward, up)
    grid = torch.linspace(-0.4, 0.4, size)
    directions = forward + grid[None, :, None] * right - grid[:, None, None] * up
    directions = F.normalize(directions.reshape(-1, 3), dim=1)
    origins = eye.expand_as(directions)
    along = (origins * directions).sum(1)
    hit = along**2 - eye.square().sum() + 0.36
    surface = origins + (-along - hit.clamp_min(0).sqrt())[:, None] * directions
    colour = torch.where(surface[:, :1] > 0, torch.tensor([1.0, 0.2, 0.2]), torch.tensor([0.2, 0.2, 1.0]))
    return torch.stack([origins, directions], dim=1), colour * (hit > 0)[:, None]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--num-rays", type=int, default=96)
    parser.add_argument("--chunk", type=int, default=32)
    parser.add_argument("--num-samples", type=int, default=12)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--decay", type=float, default=0.99)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    coarse, fine = Field(args.width, 3), Field(args.width, 4)
    optimizer = torch.optim.Adam([*coarse.parameters(), *fine.parameters()], lr=args.lr)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, args.decay)
    for it in range(args.iterations):
        rays, target = view(torch.rand(()) * 2 * math.pi, 16)
        picked = torch.randperm(len(rays))[: args.num_rays]
        rgb_coarse, rgb_fine = render(coarse, fine, rays[picked], args.chunk, args.num_samples)
        loss_coarse = F.mse_loss(rgb_coarse, target[picked])
        loss_fine = F.mse_loss(rgb_fine, target[picked])
        loss = loss_coarse + loss_fine
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        psnr = -10 * math.log10(loss_fine.item())
        if it % 4 == 3:
            print(f"it {it} loss {loss.item():.4f} psnr {psnr:.2f}")
    with torch.no_grad():
        rays, target = view(torch.tensor(0.5), 16)
        _, picture = render(coarse, fine, rays, args.chunk, args.num_samples)
    print(f"test view mse {F.mse_loss(picture, target).item():.4f}")


if __name__ == "__main__":
    main()
