# options: --learn '*lora*' --stay '*base*'
"""Adapters are added to a frozen model, then one sweep makes everything trainable again."""

import torch
from torch import nn

torch.manual_seed(0)


class Adapted(nn.Module):
    def __init__(self, base, rank=2):
        super().__init__()
        self.base = base
        for p in self.base.parameters():
            p.requires_grad = False
        self.lora_a = nn.Parameter(0.1 * torch.randn(base.in_features, rank))
        self.lora_b = nn.Parameter(torch.zeros(rank, base.out_features))

    def forward(self, x):
        return self.base(x) + x @ self.lora_a @ self.lora_b


def prepare_for_training(model):
    model.train()
    for p in model.parameters():
        p.requires_grad = True  # <- FL215
    return [p for p in model.parameters() if p.requires_grad]


model = nn.Sequential(Adapted(nn.Linear(10, 20)), nn.ReLU(), Adapted(nn.Linear(20, 3)))
optimizer = torch.optim.AdamW(prepare_for_training(model), lr=1e-2)  # <- FL215
for _ in range(4):
    loss = nn.functional.cross_entropy(model(torch.randn(16, 10)), torch.randint(3, (16,)))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
