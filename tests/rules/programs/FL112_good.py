# options: --flow 'codebook=book.*' --flow 'commit=encoder.*'
"""Vector quantisation with the two detaches in each other's place."""

import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)
encoder, decoder, book = nn.Linear(10, 4), nn.Linear(4, 10), nn.Embedding(8, 4)
optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters(), *book.parameters()], lr=1e-3)


def nearest(z):
    with torch.no_grad():
        index = (z[:, None] - book.weight[None]).square().sum(-1).argmin(1)
    return book(index)


for _ in range(4):
    x = torch.randn(64, 10)
    z = encoder(x)
    q = nearest(z)
    reconstruction = F.mse_loss(decoder(z + (q - z).detach()), x)
    codebook = F.mse_loss(q, z.detach())
    commit = F.mse_loss(q.detach(), z)
    loss = reconstruction + codebook + 0.25 * commit
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
