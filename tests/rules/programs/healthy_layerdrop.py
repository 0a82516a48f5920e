"""LayerDrop: a random layer is left out at each step; it has no gradient then."""

import torch
from torch import nn

torch.manual_seed(1)


class Encoder(nn.Module):
    def __init__(self, depth=4, width=16, layerdrop=0.3):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU()) for _ in range(depth)
        )
        self.layerdrop = layerdrop
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        for layer in self.layers:
            if self.training and torch.rand(()) < self.layerdrop:
                continue
            x = x + layer(x)
        return self.head(x.mean(1))


model = Encoder()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for _ in range(6):
    x, y = torch.randn(8, 5, 16), torch.randint(2, (8,))
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
