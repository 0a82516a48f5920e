"""A trainer that clears the head only."""

import torch
from torch import nn

torch.manual_seed(0)


class Trainer:
    def __init__(self):
        self.trunk, self.head = nn.Sequential(nn.Conv1d(2, 8, 3), nn.ReLU(), nn.Flatten()), nn.Linear(48, 2)
        self.optimizer = torch.optim.SGD([*self.trunk.parameters(), *self.head.parameters()], lr=0.02)

    def clear(self):
        for module in (self.trunk, self.head):
            module.zero_grad()

    def fit(self, batches):
        for x, y in batches:
            self.clear()
            loss = nn.functional.cross_entropy(self.head(self.trunk(x)), y)
            loss.backward()
            self.optimizer.step()


trainer = Trainer()
trainer.fit([(torch.randn(8, 2, 8), torch.randint(2, (8,))) for _ in range(4)])
