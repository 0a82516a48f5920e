"""Weight norm is put on after the optimizer was built: it replaces the weight by two new parameters."""

import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

torch.manual_seed(0)
net = nn.Sequential(nn.Conv1d(1, 16, 3, padding=1), nn.ELU(), nn.Conv1d(16, 1, 3, padding=1))
for layer in net:
    if isinstance(layer, nn.Conv1d):
        weight_norm(layer)
optimizer = torch.optim.RAdam(net.parameters(), lr=1e-2)

for _ in range(8):
    clean = torch.sin(torch.linspace(0, 6, 40) + 6 * torch.rand(8, 1, 1))
    loss = nn.functional.l1_loss(net(clean + 0.3 * torch.randn_like(clean)), clean)
    net.zero_grad()
    loss.backward()
    optimizer.step()
