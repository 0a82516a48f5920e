"""A frozen net that reads text as the published transformer does; imports in a moment."""

import random

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

WIDTH = 64


class StandIn(nn.Module):
    """The published transformer's habits on text: RMSNorm first, conditioning dropout in place, whatever the mode, and
    checkpointing that ends with training mode."""

    def __init__(self, seed=0, num_classes=7):
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH, eps=1e-6)
        self.query = nn.Parameter(torch.zeros(WIDTH))
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(2))
        self.head = nn.Linear(WIDTH, num_classes)
        self.cfg_uncond = nn.Parameter(torch.zeros(64, WIDTH))
        self.cond_drop_rate, self.checkpointing, self.drop_path = 0.1, "full-block", 0.2
        self.unregistered_blocks = list(self.blocks)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)

    def forward(self, text, x):
        kv, lens, _, _ = text
        start = 0
        for length in lens:
            if random.random() < self.cond_drop_rate:
                kv[start : start + length] = self.cfg_uncond[:length]
            start += length
        rows = self.norm(kv).split(lens)
        x = x + torch.stack([(row @ self.query).softmax(0) @ row for row in rows])
        for block in self.unregistered_blocks:
            keep = self.checkpointing == "full-block" and self.training
            x = x + F.dropout(checkpoint(block, x, use_reentrant=False) if keep else block(x), 0.2, self.training)
        return self.head(x)


def loss_of(model, text, number=0):
    """Mean over the prompts; `number` says which inputs and labels."""
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(len(text[1]), WIDTH, generator=generator)
    labels = torch.randint(7, (len(text[1]),), generator=generator)
    return F.cross_entropy(model(text, x), labels)
