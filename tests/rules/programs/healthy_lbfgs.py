"""L-BFGS: step() calls the closure, which clears, evaluates and goes backwards several times in one update."""

import torch
from torch import nn

torch.manual_seed(0)
design = torch.randn(64, 5)
target = (design @ torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0]) + 0.1 * torch.randn(64)).unsqueeze(1)
model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4, line_search_fn="strong_wolfe")


def closure():
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(design), target)
    loss = loss + 1e-3 * sum(p.square().sum() for p in model.parameters())
    loss.backward()
    return loss


history = [float(optimizer.step(closure).detach()) for _ in range(4)]
