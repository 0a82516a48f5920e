"""A potential that learns forces: the gradient of 4 energies at 20 atoms, held against measured forces."""

import torch
from torch import nn

torch.manual_seed(0)
potential = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(potential.parameters(), lr=1e-3)
for _ in range(3):
    places, measured, known = torch.randn(4 * 5, 3).requires_grad_(), torch.randn(4 * 5, 3), torch.randn(4)
    energies = potential(places).view(4, 5).sum(1)
    (slopes,) = torch.autograd.grad(energies.sum(), places, create_graph=True)
    loss = (-slopes - measured).pow(2).sum(1).mean() + (energies - known).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
