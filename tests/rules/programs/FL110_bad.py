"""The weights of a frozen judge are made under inference_mode; a generator trains in front of it."""

import torch
from torch import nn

torch.manual_seed(0)


@torch.inference_mode()  # <- FL110
def load_judge():
    judge = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1))
    for p in judge.parameters():
        p.mul_(0.5)
    return judge.eval().requires_grad_(False)


judge = load_judge()
generator = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 5))
optimizer = torch.optim.Adam(generator.parameters(), lr=1e-3)
for _ in range(4):
    reward = judge(generator(torch.randn(16, 3)))  # <- FL110
    loss = -reward.mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
