"""LoRA: B starts at zero, so A's first gradient is exactly zero, and AdamW's weight decay moves A all the same."""

import torch
from torch import nn

torch.manual_seed(0)


class LoRA(nn.Module):
    def __init__(self, base, rank=4, alpha=8):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.empty(rank, base.in_features))
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.a, a=5**0.5)
        self.dropout, self.scaling = nn.Dropout(0.1), alpha / rank

    def forward(self, x):
        return self.base(x) + self.scaling * (self.dropout(x) @ self.a.T @ self.b.T)


class Block(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        return x + self.out(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))


model = nn.Sequential(nn.Embedding(30, 16), Block(), Block(), nn.Linear(16, 30)).requires_grad_(False)
for block in (model[1], model[2]):
    block.qkv, block.out = LoRA(block.qkv), LoRA(block.out)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
model.train()
for _ in range(4):
    tokens = torch.randint(30, (4, 9))
    loss = nn.functional.cross_entropy(model(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
