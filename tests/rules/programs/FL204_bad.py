"""Fine-tuning in pure bfloat16: the updates are smaller than the spacing of the weights."""

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)).to(torch.bfloat16)
with torch.no_grad():
    for p in model.parameters():
        p.copy_(torch.where(p.abs() < 0.05, 0.05 * torch.ones_like(p), p))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
for _ in range(4):
    x = torch.randn(16, 16)
    prediction = model(x.to(torch.bfloat16)).float()
    loss = nn.functional.mse_loss(prediction, x.flip(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()  # <- FL204
