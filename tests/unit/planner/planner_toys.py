"""Small training steps to plan."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from frostline.memory import Workload


class Block(nn.Module):
    def __init__(self, dim: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        batch, length, dim = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, 4, dim // 4).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, dim)
        x = x + self.dropout(self.out(attended))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Transformer(nn.Module):
    """A trainable front, and frozen blocks and a frozen head behind it."""

    def __init__(self, num_blocks: int = 12, dim: int = 64, vocabulary: int = 100) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Linear(16, dim), nn.GELU(), nn.Linear(dim, dim))
        self.blocks = nn.ModuleList(Block(dim) for _ in range(num_blocks))
        self.head = nn.Linear(dim, vocabulary)
        self.blocks.requires_grad_(False)
        self.head.requires_grad_(False)

    def forward(self, x, target):
        x = self.front(x)
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(x).flatten(0, 1), target.flatten())


def transformer(num_blocks: int = 12, *, batch: int = 4, length: int = 64) -> Workload:
    torch.manual_seed(0)
    model = Transformer(num_blocks)
    x, target = torch.randn(batch, length, 16), torch.randint(0, 100, (batch, length))
    optimizer = torch.optim.AdamW(model.front.parameters(), lr=1e-3)

    def step():
        loss = model(x, target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return Workload(step=step, model=model, optimizers=(optimizer,), inputs=(x, target))


def squares(model: nn.Module, x: torch.Tensor, *, autocast: bool = False) -> Workload:
    """The mean square of what a model returns, by Adam on what trains."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(x).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return Workload(step=step, model=model, optimizers=(optimizer,), inputs=(x,))


def mlp(dim: int = 32) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))


def stack(num_blocks: int = 3, dim: int = 32) -> nn.Sequential:
    """A trainable layer, and frozen blocks behind it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(dim, dim), nn.Sequential(*(mlp(dim) for _ in range(num_blocks))))
    model[1].requires_grad_(False)
    return model


def conv_block(num_in: int, num_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(num_in, num_out, 3, padding=1), nn.BatchNorm2d(num_out), nn.ReLU())


def convolutions() -> nn.Sequential:
    """A trainable convolution, and frozen blocks in eval mode behind it."""
    torch.manual_seed(0)
    body = nn.Sequential(conv_block(8, 16), conv_block(16, 16), conv_block(16, 16))
    body.requires_grad_(False)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), body.eval())
