"""An auto-decoder in double precision: the latent codes are converted after they became parameters."""

import torch
from torch import nn

torch.manual_seed(0)


class AutoDecoder(nn.Module):
    def __init__(self, num_shapes=6, width=4):
        super().__init__()
        self.codes = nn.Parameter(torch.randn(num_shapes, width)).to(torch.float64)  # <- FL206
        self.net = nn.Sequential(nn.Linear(width + 3, 32), nn.ReLU(), nn.Linear(32, 1)).to(torch.float64)

    def forward(self, index, points):
        latent = self.codes[index].unsqueeze(1).expand(-1, points.shape[1], -1)  # <- FL206
        return self.net(torch.cat([latent, points], dim=-1)).squeeze(-1)


model = AutoDecoder()
codes_first = model.codes.detach().clone()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for _ in range(4):
    index, points = torch.randint(6, (4,)), torch.rand(4, 20, 3, dtype=torch.float64)
    distance = points.norm(dim=-1) - 0.5 - 0.05 * index[:, None]
    loss = nn.functional.l1_loss(model(index, points).clamp(-1, 1), distance) + 1e-4 * model.codes.square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
