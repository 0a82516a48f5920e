"""RGB-D segmentation: a new stem feeds a frozen RGB backbone, and a new head reads it.

The backbone runs under no_grad and its output is told to require grad, so that backward() does not complain. The head
learns; the stem, which is in the optimizer too, keeps its initial values.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Backbone(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.GroupNorm(4, width), nn.SiLU())
        self.stage2 = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.GroupNorm(4, 2 * width), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.stage2(self.stage1(x))


class RGBDSegmenter(nn.Module):
    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))
        self.backbone = Backbone(width)
        self.head = nn.Conv2d(2 * width, num_classes, 1)
        for p in self.backbone.parameters():
            p.requires_grad = False

    def extract(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.backbone(images)
        features.requires_grad_(True)  # <- here
        return features

    def forward(self, rgbd: Tensor) -> Tensor:
        features = self.extract(self.stem(rgbd))
        return F.interpolate(self.head(features), size=rgbd.shape[-2:], mode="bilinear", align_corners=False)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model = RGBDSegmenter(args.width, num_classes=3)
    model.backbone.eval()
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1, momentum=0.9)
    for step in range(args.steps):
        rgbd = torch.rand(args.batch_size, 4, 24, 24)
        target = (rgbd[:, 3] * 3).long()  # the depth's thirds: only the stem sees depth
        loss = F.cross_entropy(model(rgbd), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step} loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
