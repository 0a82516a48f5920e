"""MoCo: a key encoder without gradient, and a queue of old keys in a buffer that is written in place."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)


class MoCo(nn.Module):
    def __init__(self, width=8, queue_size=64):
        super().__init__()
        self.query = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, width))
        self.key = copy.deepcopy(self.query)
        for p in self.key.parameters():
            p.requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(queue_size, width), dim=1))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def enqueue(self, keys):
        at = int(self.pointer)
        self.queue[at : at + len(keys)] = keys
        self.pointer[0] = (at + len(keys)) % len(self.queue)

    def forward(self, view_q, view_k):
        q = F.normalize(self.query(view_q), dim=1)
        with torch.no_grad():
            for slow, fast in zip(self.key.parameters(), self.query.parameters(), strict=True):
                slow.mul_(0.99).add_(fast, alpha=0.01)
            k = F.normalize(self.key(view_k), dim=1)
        positive = (q * k).sum(1, keepdim=True)
        negative = q @ self.queue.clone().detach().T
        self.enqueue(k)
        return torch.cat([positive, negative], dim=1) / 0.2


model = MoCo()
optimizer = torch.optim.SGD(model.query.parameters(), lr=0.1, momentum=0.9)
for _ in range(4):
    x = torch.randn(16, 12)
    logits = model(x + 0.1 * torch.randn_like(x), x + 0.1 * torch.randn_like(x))
    loss = F.cross_entropy(logits, torch.zeros(16, dtype=torch.long))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
