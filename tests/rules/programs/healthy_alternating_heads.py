"""Multi-task: the tasks take turns, so each head is without gradient in every second step."""

import itertools

import torch
from torch import nn

torch.manual_seed(0)


class MultiTask(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(12, 32), nn.ReLU())
        self.heads = nn.ModuleDict({"age": nn.Linear(32, 1), "mood": nn.Linear(32, 4)})

    def forward(self, x, task):
        return self.heads[task](self.trunk(x))


model = MultiTask()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
losses = {
    "age": lambda out: nn.functional.l1_loss(out, torch.rand(16, 1)),
    "mood": lambda out: nn.functional.cross_entropy(out, torch.randint(4, (16,))),
}
for task in itertools.islice(itertools.cycle(losses), 6):
    optimizer.zero_grad()
    losses[task](model(torch.randn(16, 12), task)).backward()
    optimizer.step()
