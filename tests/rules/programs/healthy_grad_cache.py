"""GradCache: representations become leaves, the loss fills their gradient, and a second backward hands it on."""

import torch
from torch import nn

torch.manual_seed(0)
query, document = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8)), nn.Linear(8, 8)
optimizer = torch.optim.AdamW([*query.parameters(), *document.parameters()], lr=1e-3)
for _ in range(4):
    q, d = torch.randn(32, 8), torch.randn(32, 8)
    with torch.no_grad():
        q_leaf = torch.cat([query(part) for part in q.split(8)]).requires_grad_()
        d_leaf = torch.cat([document(part) for part in d.split(8)]).requires_grad_()
    loss = nn.functional.cross_entropy(q_leaf @ d_leaf.T, torch.arange(32))
    optimizer.zero_grad()
    loss.backward()
    for encoder, inputs, leaf in ((query, q, q_leaf), (document, d, d_leaf)):
        for part, slope in zip(inputs.split(8), leaf.grad.split(8), strict=True):
            encoder(part).backward(slope)
    optimizer.step()
