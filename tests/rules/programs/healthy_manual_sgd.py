"""No optimizer at all: the parameters are updated by hand under no_grad, and .grad is cleared by hand."""

import math

import torch

torch.manual_seed(0)
w1 = (torch.randn(6, 32) / math.sqrt(6)).requires_grad_()
b1 = torch.zeros(32, requires_grad=True)
w2 = (torch.randn(32, 3) / math.sqrt(32)).requires_grad_()
velocity = [torch.zeros_like(p) for p in (w1, b1, w2)]
for _ in range(4):
    x, y = torch.randn(32, 6), torch.randint(3, (32,))
    scores = (x @ w1 + b1).clamp(min=0) @ w2
    loss = -scores.log_softmax(1)[torch.arange(32), y].mean()
    loss.backward()
    with torch.no_grad():
        for p, v in zip((w1, b1, w2), velocity, strict=True):
            v.mul_(0.9).add_(p.grad)
            p -= 0.05 * v
            p.grad = None
