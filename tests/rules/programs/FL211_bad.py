"""A layer scale that starts at zero and cannot learn keeps its branch without influence."""

import torch
from torch import nn

torch.manual_seed(0)


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(width, width), nn.GELU())
        self.register_buffer("scale", torch.zeros(width))

    def forward(self, x):
        return x + self.scale * self.branch(x)  # <- FL211


net = nn.Sequential(nn.Linear(5, 16), Residual(16), Residual(16), nn.Linear(16, 1))
optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)  # <- FL211
for _ in range(4):
    x = torch.randn(32, 5)
    loss = nn.functional.mse_loss(net(x), x.amax(1, keepdim=True))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()  # <- FL211
