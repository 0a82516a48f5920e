"""Two optimizers; freezing by class also catches the part that the second one holds."""

import torch
from torch import nn

torch.manual_seed(0)
backbone, prompts, head = nn.GRU(8, 8, batch_first=True), nn.Embedding(3, 8), nn.Linear(8, 4)
for module in (backbone, prompts):
    for p in module.parameters():
        p.requires_grad_(False)
opt_head = torch.optim.SGD(head.parameters(), lr=0.1)
opt_prompts = torch.optim.Adam(prompts.parameters(), lr=1e-2)  # <- FL203

for _ in range(4):
    x, y = torch.randn(16, 5, 8), torch.randint(4, (16,))
    _, state = backbone(torch.cat([prompts.weight.expand(16, -1, -1), x], dim=1))
    loss = nn.functional.cross_entropy(head(state[-1]), y)
    opt_head.zero_grad()
    opt_prompts.zero_grad()
    loss.backward()
    opt_head.step()
    opt_prompts.step()
