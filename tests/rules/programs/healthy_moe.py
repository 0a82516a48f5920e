"""Mixture of experts, top-1: an expert without a token in a batch gets no gradient, or zeros, and is no fault."""

import torch
from torch import nn

torch.manual_seed(0)


class MoE(nn.Module):
    def __init__(self, width=8, num_experts=4):
        super().__init__()
        self.router = nn.Linear(width, num_experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width)) for _ in range(num_experts)
        )
        with torch.no_grad():
            self.router.weight[3] = 0.0
            self.router.weight[3, 0] = -50.0

    def forward(self, x):
        gates = self.router(x).softmax(-1)
        weight, choice = gates.max(-1)
        out = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rows = (choice == index).nonzero().squeeze(1)
            if len(rows) == 0:
                continue
            out = out.index_add(0, rows, weight[rows, None] * expert(x[rows]))
        load = torch.bincount(choice, minlength=len(self.experts)) / len(x)
        return x + out, len(self.experts) * (load * gates.mean(0)).sum()


model, head = MoE(), nn.Linear(8, 1)
optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=1e-3)
for _ in range(4):
    x = torch.randn(64, 8)
    x[:, 0] = x[:, 0].abs() + 0.5
    h, balance = model(x)
    loss = nn.functional.mse_loss(head(h).squeeze(-1), x.sin().sum(1)) + 0.01 * balance
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
