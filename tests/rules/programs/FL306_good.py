"""An EMA class with a shadow dict of parameters, loaded into a copy for evaluation."""

import copy

import torch
from torch import nn

torch.manual_seed(0)


class EMA:
    def __init__(self, net, decay):
        self.decay, self.averaged = decay, copy.deepcopy(net).eval()
        self.shadow = {name: p.detach().clone() for name, p in net.named_parameters()}

    def update(self, net):
        for name, p in net.named_parameters():
            self.shadow[name] = self.decay * self.shadow[name] + (1 - self.decay) * p.detach()
        self.averaged.load_state_dict({**net.state_dict(), **self.shadow})


net = nn.Sequential(nn.Conv1d(1, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 1, 3))
ema = EMA(net, decay=0.5)
for p in ema.averaged.parameters():
    p.requires_grad_(False)
optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
for _ in range(4):
    wave = torch.randn(8, 1, 20) + 3
    loss = nn.functional.mse_loss(net(wave), wave[..., 2:-2])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    ema.update(net)
    with torch.no_grad():
        validation = nn.functional.mse_loss(ema.averaged(wave), wave[..., 2:-2]).item()
