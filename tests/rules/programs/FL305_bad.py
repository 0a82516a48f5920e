"""A callback looks at strange data after every step and forgets the mode."""

import contextlib

import torch
from torch import nn

torch.manual_seed(0)


@contextlib.contextmanager
def evaluating(module):
    was_training = module.training
    module.eval()
    yield
    module.train(was_training)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 3))
        self.doubts = []

    def forward(self, x):
        return self.net(x).log_softmax(-1)

    @torch.inference_mode()
    def on_step_end(self):
        strange = 10 * torch.randn(32, 10) - 5
        log_p = self(strange)  # <- FL305
        self.doubts.append(-(log_p.exp() * log_p).sum(-1).mean().item())


model = Classifier()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for _ in range(4):
    x, y = torch.randn(16, 10), torch.randint(3, (16,))
    loss = nn.functional.nll_loss(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    model.on_step_end()
