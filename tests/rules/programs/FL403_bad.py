"""An entropy bonus over probabilities that are exactly zero."""

import torch
from torch import nn

torch.manual_seed(0)
router = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5))
values = nn.Linear(6, 5)
optimizer = torch.optim.SGD([*router.parameters(), *values.parameters()], lr=0.01)


def entropy(p):
    surprise = p * torch.log(p)  # <- FL403
    return torch.where(p > 0, -surprise, torch.zeros_like(p)).sum(-1).mean()  # <- FL403


for _ in range(4):
    x = torch.randn(32, 6)
    scores = router(x)
    kept = scores >= scores.topk(2, dim=-1).values[:, -1:]
    p = scores.masked_fill(~kept, float("-inf")).softmax(-1)
    fit = ((p * values(x)).sum(-1) - x.norm(dim=-1)).square().mean()
    loss = fit - 0.01 * entropy(p)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
