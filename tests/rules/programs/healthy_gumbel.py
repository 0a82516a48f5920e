"""Gumbel-softmax, hard: one-hot from argmax in the forward, soft gradient in the backward."""

import torch
from torch import nn

torch.manual_seed(0)


class DiscreteAutoencoder(nn.Module):
    def __init__(self, num_symbols=8, length=3):
        super().__init__()
        self.shape = (length, num_symbols)
        self.encoder = nn.Linear(20, length * num_symbols)
        self.decoder = nn.Sequential(nn.Linear(length * num_symbols, 32), nn.ReLU(), nn.Linear(32, 20))

    def forward(self, x, temperature):
        logits = self.encoder(x).view(-1, *self.shape)
        symbols = nn.functional.gumbel_softmax(logits, tau=temperature, hard=True)
        return self.decoder(symbols.flatten(1)), symbols


model = DiscreteAutoencoder()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
usage = torch.zeros(8)
for step in range(4):
    x = torch.randn(32, 20)
    reconstruction, symbols = model(x, temperature=max(0.5, 0.9**step))
    loss = nn.functional.mse_loss(reconstruction, x)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    usage += symbols.detach().sum((0, 1))
