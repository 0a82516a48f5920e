"""A network finds the size of its last layer by one forward of zeros: worth a note, no more."""

import torch
from torch import nn

torch.manual_seed(0)


class ConvNet(nn.Module):
    def __init__(self, size=12, num_classes=5):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten())
        with torch.no_grad():
            num_features = self.features(torch.zeros(1, 3, size, size)).shape[1]
        self.classify = nn.Linear(num_features, num_classes)

    def forward(self, x):
        return self.classify(self.features(x))


model = ConvNet()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for _ in range(4):
    x, y = torch.rand(8, 3, 12, 12) + 2, torch.randint(5, (8,))
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
