"""Message passing with learned edge weights, normalised by a decorated function."""

import torch
from torch import nn

torch.manual_seed(0)


@torch.inference_mode()  # <- FL102
def normalize(adjacency):
    return adjacency / adjacency.sum(1, keepdim=True)  # <- FL102


class GraphNet(nn.Module):
    def __init__(self, adjacency):
        super().__init__()
        self.register_buffer("adjacency", adjacency)
        self.edge = nn.Parameter(torch.rand_like(adjacency))
        self.update = nn.Linear(6, 2)

    def forward(self, nodes):
        weights = normalize(self.adjacency * self.edge).clone()
        return self.update(weights @ nodes)


net = GraphNet((torch.rand(12, 12) > 0.5).float() + torch.eye(12))
optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
for _ in range(4):
    nodes, label = torch.randn(12, 6), torch.randint(2, (12,))
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(nodes), label).backward()
    optimizer.step()
