"""A leaky memory: its decay is written through .data after a layer has read it."""

import torch
from torch import nn

torch.manual_seed(0)


class Memory(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.write, self.read = nn.Linear(4, width), nn.Linear(width, 2)

    def forward(self, sequence):
        state, outputs = torch.zeros(len(sequence), 8), []
        for x in sequence.unbind(1):
            state = (state + self.write(x)).tanh()
            outputs.append(self.read(state))
            state.data *= 0.5  # <- FL309
        return torch.stack(outputs, dim=1)


model = Memory()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(4):
    sequence = torch.randn(8, 5, 4)
    loss = nn.functional.mse_loss(model(sequence), sequence.cumsum(1)[..., :2])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
