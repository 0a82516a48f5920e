"""A VAE whose sampling decoder is checkpointed by a functools.partial that does not keep the random state."""

import functools

import torch
from torch import nn
from torch.utils import checkpoint as ckpt

torch.manual_seed(0)
remember_less = functools.partial(ckpt.checkpoint, use_reentrant=False, preserve_rng_state=False)


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(12, 8), nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 12))

    def sample_and_decode(self, mean, log_variance):
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        return self.decode(z)

    def forward(self, x):
        mean, log_variance = self.encode(x).chunk(2, dim=-1)
        return remember_less(self.sample_and_decode, mean, log_variance), mean, log_variance  # <- FL307


model = VAE()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for _ in range(4):
    x = torch.randn(32, 12)
    reconstruction, mean, log_variance = model(x)
    rec = nn.functional.mse_loss(reconstruction, x)
    kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).mean()
    optimizer.zero_grad()
    (rec + 0.1 * kl).backward()
    optimizer.step()
