"""Two networks, one backward; a helper steps an optimizer and updates the scaler each time it is called."""

import torch
from torch import nn

torch.manual_seed(0)


class Precision:
    def __init__(self, *optimizers):
        self.optimizers = optimizers
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)

    def apply(self, optimizer):
        self.scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 5.0)
        self.scaler.step(optimizer)

    def minimize(self, loss):
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        for optimizer in self.optimizers:
            self.apply(optimizer)
        self.scaler.update()


words, pictures = nn.EmbeddingBag(30, 6), nn.Linear(10, 6)
precision = Precision(torch.optim.SGD(words.parameters(), lr=0.1), torch.optim.Adam(pictures.parameters(), lr=1e-3))
for _ in range(4):
    similarity = words(torch.randint(30, (8, 4))) @ pictures(torch.randn(8, 10)).T
    precision.minimize(nn.functional.cross_entropy(similarity, torch.arange(8)))
