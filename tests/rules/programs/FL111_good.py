"""A dict of losses; one of them is computed from hard decisions."""

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
weights = {"likelihood": 1.0, "accuracy": 0.5}


def losses_of(logits, y):
    likelihood = nn.functional.cross_entropy(logits, y)
    accuracy = 1 - logits.softmax(1).gather(1, y[:, None]).mean()
    return {"likelihood": likelihood, "accuracy": accuracy}


for _ in range(4):
    x, y = torch.randn(32, 8), torch.randint(4, (32,))
    last = losses_of(model(x), y)
    total = sum(weights[name] * value for name, value in last.items())
    optimizer.zero_grad()
    total.backward()
    optimizer.step()
