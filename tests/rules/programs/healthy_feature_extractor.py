"""Linear probe: the backbone requires grad and runs under no_grad; only the head is meant to learn."""

import torch
from torch import nn

torch.manual_seed(0)


class Probe(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.head = nn.Linear(16, 5)

    @torch.no_grad()
    def features(self, x):
        self.backbone.eval()
        return self.backbone(x)

    def forward(self, x):
        return self.head(self.features(x))


model = Probe().train()
optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
for _ in range(4):
    x, y = torch.rand(8, 3, 12, 12), torch.randint(5, (8,))
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
