"""BYOL: an online network predicts the projections of an averaged target; parameters and buffers are averaged."""

from __future__ import annotations

import argparse
import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp(num_in: int, width: int, num_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(num_in, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True), nn.Linear(width, num_out)
    )


class Encoder(nn.Module):
    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, width, 3, 2, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.projector = mlp(2 * width, 4 * width, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.projector(self.backbone(x))


class BYOL(nn.Module):
    def __init__(self, width: int, dim: int, base_momentum: float) -> None:
        super().__init__()
        self.online_encoder = Encoder(width, dim)
        self.predictor = mlp(dim, 4 * width, dim)
        self.target_encoder = copy.deepcopy(self.online_encoder)
        for p in self.target_encoder.parameters():
            p.requires_grad = False
        self.base_momentum = base_momentum

    @torch.no_grad()
    def update_moving_average(self, progress: float) -> None:
        tau = 1 - (1 - self.base_momentum) * (math.cos(math.pi * progress) + 1) / 2
        for online, target in zip(self.online_encoder.parameters(), self.target_encoder.parameters(), strict=True):
            target.copy_(tau * target + (1 - tau) * online)
        for online, target in zip(self.online_encoder.buffers(), self.target_encoder.buffers(), strict=True):
            target.copy_(online)

    def forward(self, view1: Tensor, view2: Tensor) -> Tensor:
        prediction1 = self.predictor(self.online_encoder(view1))
        prediction2 = self.predictor(self.online_encoder(view2))
        with torch.no_grad():
            target1 = self.target_encoder(view1)
            target2 = self.target_encoder(view2)
        loss1 = 2 - 2 * F.cosine_similarity(prediction1, target2.detach(), dim=-1)
        loss2 = 2 - 2 * F.cosine_similarity(prediction2, target1.detach(), dim=-1)
        return (loss1 + loss2).mean()


def augment(image: Tensor) -> Tensor:
    dx, dy = torch.randint(-2, 3, (2,)).tolist()
    image = torch.roll(image, (dx, dy), dims=(2, 3))
    if torch.rand(()) < 0.5:
        image = image.flip(3)
    return image * (0.8 + 0.4 * torch.rand(image.size(0), 1, 1, 1)) + 0.1 * torch.randn_like(image)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--momentum", type=float, default=0.99)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    learner = BYOL(args.width, args.dim, args.momentum)
    optimizer = torch.optim.SGD(
        [*learner.online_encoder.parameters(), *learner.predictor.parameters()],
        lr=0.05,
        momentum=0.9,
        weight_decay=1e-4,
    )
    images = torch.randn(64, 1, 16, 16).cumsum(2).cumsum(3) / 16
    for it in range(args.iterations):
        batch = images[torch.randperm(len(images))[: args.batch_size]]
        loss = learner(augment(batch), augment(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learner.update_moving_average(it / args.iterations)
        if it % 5 == 4:
            print(f"it {it} loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
