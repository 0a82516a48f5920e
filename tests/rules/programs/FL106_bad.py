"""CLIP with a learned temperature that leaves torch as a Python number."""

import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)


class TinyCLIP(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.text = nn.Linear(20, 8), nn.EmbeddingBag(40, 8)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, pixels, tokens):
        image, text = F.normalize(self.image(pixels), dim=-1), F.normalize(self.text(tokens), dim=-1)
        scale = self.logit_scale.exp().item()  # <- FL106
        return scale * image @ text.T


clip = TinyCLIP()
optimizer = torch.optim.Adam(clip.parameters(), lr=1e-2)
scales = []
for _ in range(4):
    logits = clip(torch.randn(8, 20), torch.randint(40, (8, 6)))
    loss = (F.cross_entropy(logits, torch.arange(8)) + F.cross_entropy(logits.T, torch.arange(8))) / 2
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scales.append(clip.logit_scale.exp().item())
