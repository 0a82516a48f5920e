"""Mixed precision on a CPU: frozen backbone, trainable head, accumulation, clipping and OneCycleLR."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Classifier(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        self.head = nn.Sequential(
            nn.Linear(64, 32), nn.BatchNorm1d(32), nn.GELU(), nn.Dropout(0.2), nn.Linear(32, num_classes)
        )
        self.backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> Classifier:
        super().train(mode)
        self.backbone.eval()  # frozen statistics, whatever the rest does
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


def make_loader(num_samples: int, batch_size: int, prototypes: Tensor, *, shuffle: bool) -> DataLoader:
    targets = torch.randint(len(prototypes), (num_samples,))
    images = prototypes[targets] + 0.5 * torch.randn(num_samples, 3, 12, 12)
    return DataLoader(TensorDataset(images, targets), batch_size=batch_size, shuffle=shuffle, drop_last=shuffle)


@torch.no_grad()
def evaluate(model: Classifier, loader: DataLoader, dtype: torch.dtype) -> tuple[float, float]:
    was_training = model.training
    model.eval()
    loss = correct = total = 0.0
    for images, targets in loader:
        with torch.autocast("cpu", dtype=dtype):
            logits = model(images)
        loss += F.cross_entropy(logits.float(), targets, reduction="sum").item()
        correct += (logits.argmax(1) == targets).sum().item()
        total += len(targets)
    model.train(was_training)
    return loss / total, correct / total


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--accumulate", type=int, default=4)
    parser.add_argument("--max-lr", type=float, default=5e-3)
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--dtype", choices=["bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    dtype = getattr(torch, args.dtype)

    prototypes = torch.randn(5, 3, 12, 12)
    train_loader = make_loader(128, args.batch_size, prototypes, shuffle=True)
    valid_loader = make_loader(40, args.batch_size, prototypes, shuffle=False)
    model = Classifier(num_classes=5)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=args.max_lr / 25)
    updates = args.epochs * len(train_loader) // args.accumulate
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=args.max_lr, total_steps=updates)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    for epoch in range(args.epochs):
        model.train()
        running_loss = 0.0
        for i, (images, targets) in enumerate(train_loader):
            with torch.autocast("cpu", dtype=dtype):
                loss = F.cross_entropy(model(images), targets) / args.accumulate
            scaler.scale(loss).backward()
            running_loss += loss.item()
            if (i + 1) % args.accumulate == 0:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.head.parameters(), args.clip)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad(set_to_none=True)
                scheduler.step()
        valid_loss, accuracy = evaluate(model, valid_loader, dtype)
        train_loss = running_loss * args.accumulate / len(train_loader)
        print(f"epoch {epoch} train {train_loss:.4f} valid {valid_loss:.4f} accuracy {accuracy:.2f}")


if __name__ == "__main__":
    main()
