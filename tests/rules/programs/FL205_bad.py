"""A scorer that is a plain class hides its parameter from the module that owns it."""

import torch
from torch import nn

torch.manual_seed(0)


class BilinearScorer:
    def __init__(self, width):
        self.bilinear = nn.Parameter(torch.randn(width, width) / width)  # <- FL205

    def __call__(self, a, b):
        return ((a @ self.bilinear) * b).sum(-1)  # <- FL205


class LinkPredictor(nn.Module):
    def __init__(self, num_nodes=30, width=8):
        super().__init__()
        self.nodes = nn.Embedding(num_nodes, width)
        self.scorer = BilinearScorer(width)

    def forward(self, pairs):
        a, b = self.nodes(pairs).unbind(1)
        return self.scorer(a, b)


model = LinkPredictor()
bilinear_first = model.scorer.bilinear.detach().clone()
optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
for _ in range(4):
    pairs = torch.randint(30, (32, 2))
    loss = nn.functional.binary_cross_entropy_with_logits(model(pairs), (pairs.sum(1) % 2).float())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
