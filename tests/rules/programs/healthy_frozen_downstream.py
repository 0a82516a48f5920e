"""A trainable codec in front of a frozen network in eval mode, gradient through it; dropout in the codec is active."""

import torch
from torch import nn

torch.manual_seed(0)
receiver = nn.Sequential(
    nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(288, 6)
)
receiver.eval().requires_grad_(False)
codec = nn.ModuleDict({"compress": nn.Conv2d(3, 2, 1), "restore": nn.Sequential(nn.Dropout(0.1), nn.Conv2d(2, 4, 1))})
optimizer = torch.optim.Adam(codec.parameters(), lr=1e-3)


def channel(symbols, snr_db):
    power = symbols.square().mean().detach()
    return symbols + (power * 10 ** (-snr_db / 10)).sqrt() * torch.randn_like(symbols)


for step in range(4):
    codec.train()
    picture, caption = torch.rand(4, 3, 8, 8), torch.randint(6, (4,))
    with torch.no_grad():
        picture = (picture - picture.mean()) / picture.std()
    code = codec["compress"](picture)
    task = nn.functional.cross_entropy(receiver(codec["restore"](channel(code, snr_db=10.0 - step))), caption)
    loss = task + 1e-3 * code.square().mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
