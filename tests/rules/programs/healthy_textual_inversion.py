"""Textual inversion: one new row of an embedding learns, the others get their old values back after each step."""

import torch
from torch import nn

torch.manual_seed(0)
embed = nn.Embedding(12, 8)
encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval().requires_grad_(False)
head = nn.Linear(8, 4).requires_grad_(False)
placeholder = 11
keep = torch.arange(12) != placeholder
original = embed.weight.detach().clone()
optimizer = torch.optim.AdamW(embed.parameters(), lr=5e-2)
for _ in range(4):
    tokens = torch.randint(11, (8, 5))
    tokens[:, 2] = placeholder
    loss = nn.functional.cross_entropy(head(encoder(embed(tokens)).mean(1)), torch.zeros(8, dtype=torch.long))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        embed.weight[keep] = original[keep]
