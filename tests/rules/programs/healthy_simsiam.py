"""SimSiam: the stop-gradient is on the output of the very encoder that trains."""

import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)


class SimSiam(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16))
        self.predictor = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 16))

    def forward(self, a, b):
        z_a, z_b = self.encoder(a), self.encoder(b)
        return self.predictor(z_a), self.predictor(z_b), z_a.detach(), z_b.detach()


model = SimSiam()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
for _ in range(4):
    x = torch.randn(32, 12)
    p_a, p_b, z_a, z_b = model(x + 0.1 * torch.randn_like(x), x + 0.1 * torch.randn_like(x))
    loss = -(F.cosine_similarity(p_a, z_b).mean() + F.cosine_similarity(p_b, z_a).mean()) / 2
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
