"""Activation checkpointing, reentrant and not, with dropout; the reentrant input is made to require grad."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

torch.manual_seed(0)


def block(width):
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(4 * width, width)
    )


class Decoder(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.embed = nn.Embedding(30, width).requires_grad_(False)
        self.embed.register_forward_hook(lambda module, args, out: out.requires_grad_(True))
        self.blocks = nn.ModuleList(block(width) for _ in range(4))
        self.head = nn.Linear(width, 30)

    def forward(self, tokens):
        h = self.embed(tokens)
        for index, layer in enumerate(self.blocks):
            h = h + checkpoint(layer, h, use_reentrant=index % 2 == 0)
        return self.head(h)


model = Decoder().train()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
for _ in range(4):
    tokens = torch.randint(30, (4, 7))
    loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.roll(-1, 1).flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
