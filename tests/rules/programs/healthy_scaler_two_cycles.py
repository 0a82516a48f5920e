"""A GAN under mixed precision: a whole cycle of scale, step and update for each network's own backward."""

import torch
from torch import nn
from torch.nn.functional import softplus

torch.manual_seed(0)
scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)


class Player:
    def __init__(self, net):
        self.net, self.optimizer = net, torch.optim.Adam(net.parameters(), lr=1e-3)

    def learn(self, loss):
        self.optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(self.optimizer)
        scaler.update()


g = Player(nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2)))
d = Player(nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1)))
for _ in range(4):
    fake = g.net(torch.randn(16, 3))
    d.learn(softplus(d.net(fake.detach())).mean() + softplus(-d.net(torch.randn(16, 2))).mean())
    g.learn(softplus(-d.net(fake)).mean())
