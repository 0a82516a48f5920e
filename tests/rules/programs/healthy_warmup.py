"""Linear warm-up from a learning rate of 0: nothing moves in the first step."""

import torch
from torch import nn

torch.manual_seed(0)
num_warmup, num_steps = 2, 6
model = nn.Sequential(nn.Embedding(20, 8), nn.Flatten(), nn.Linear(24, 20))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)


def factor(step):
    if step < num_warmup:
        return step / num_warmup
    return max(0.0, (num_steps - step) / (num_steps - num_warmup))


scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
for _ in range(num_steps):
    context, following = torch.randint(20, (16, 3)), torch.randint(20, (16,))
    loss = nn.functional.cross_entropy(model(context), following)
    loss.backward()
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
