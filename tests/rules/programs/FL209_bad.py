"""A second optimizer for the head, and the first still holds everything."""

import torch
from torch import nn

torch.manual_seed(0)
model = nn.ModuleDict({"body": nn.Linear(14, 28), "head": nn.Linear(28, 7)})
optimizers = {
    "all": torch.optim.AdamW(model.parameters(), lr=1e-4),  # <- FL209
    "head": torch.optim.SGD(model["head"].parameters(), lr=0.1),  # <- FL209
}
for _ in range(4):
    x, y = torch.randn(16, 14), torch.randint(7, (16,))
    loss = nn.functional.cross_entropy(model["head"](model["body"](x).relu()), y)
    model.zero_grad()
    loss.backward()
    for optimizer in optimizers.values():
        optimizer.step()
