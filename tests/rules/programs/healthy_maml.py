"""MAML: fast weights from autograd.grad with create_graph; no optimizer ever steps them."""

import torch
from torch import nn
from torch.func import functional_call

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))
meta_optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
inner_lr = nn.Parameter(torch.tensor(0.05))
meta_optimizer.add_param_group({"params": [inner_lr], "lr": 1e-4})


def sine_task():
    amplitude, phase = 1 + torch.rand(1), 3 * torch.rand(1)
    x = 10 * torch.rand(20, 1) - 5
    y = amplitude * torch.sin(x + phase)
    return x[:10], y[:10], x[10:], y[10:]


for _ in range(4):
    meta_loss = 0.0
    for _ in range(3):
        x_support, y_support, x_query, y_query = sine_task()
        fast = dict(model.named_parameters())
        for _ in range(2):
            inner = nn.functional.mse_loss(functional_call(model, fast, (x_support,)), y_support)
            slopes = torch.autograd.grad(inner, list(fast.values()), create_graph=True)
            fast = {name: p - inner_lr * g for (name, p), g in zip(fast.items(), slopes, strict=True)}
        meta_loss = meta_loss + nn.functional.mse_loss(functional_call(model, fast, (x_query,)), y_query)
    meta_optimizer.zero_grad()
    (meta_loss / 3).backward()
    meta_optimizer.step()
