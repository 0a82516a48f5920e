"""Clipping by value, accumulation over two batches, a scaler; all in one helper."""

import torch
from torch import nn

torch.manual_seed(0)


class Amp:
    def __init__(self, model):
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        self.scaler = torch.amp.GradScaler(device="cpu", init_scale=4096.0)

    def update(self):
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_value_(self.model.parameters(), 0.5)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    def backward(self, loss):
        self.scaler.scale(loss / 2).backward()


model = nn.GRU(3, 12, batch_first=True)
amp = Amp(model)
for step in range(8):
    series = torch.randn(8, 10, 3)
    output, _ = model(series)
    amp.backward(nn.functional.mse_loss(output[..., :3], series.cumsum(1)))
    if step % 2 == 1:
        amp.update()
