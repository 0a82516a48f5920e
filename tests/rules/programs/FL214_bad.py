# options: --learn 'layers.10.*' --learn 'layers.11.*' --stay 'layers.0.*'
"""The first two of twelve layers are frozen by the beginning of their names, and so are ten and eleven."""

import torch
from torch import nn

torch.manual_seed(0)


class Deep(nn.Module):
    def __init__(self, depth=12, width=8):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.out = nn.Linear(width, 2)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x).tanh()
        return self.out(x)


model = Deep()
frozen = ("layers.0", "layers.1")
for name, p in model.named_parameters():
    if name.startswith(frozen):
        p.requires_grad = False  # <- FL214
optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
for _ in range(4):
    x, y = torch.randn(16, 8), torch.randint(2, (16,))
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
