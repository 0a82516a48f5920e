"""torch.func: vmap over per-sample gradients and an ensemble by functional_call on stacked parameters."""

import copy

import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

torch.manual_seed(0)
models = [nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1)) for _ in range(3)]
stacked, _ = stack_module_state(models)
ensemble = {name: nn.Parameter(p.detach()) for name, p in stacked.items()}
skeleton = copy.deepcopy(models[0]).to("meta")
optimizer = torch.optim.Adam(ensemble.values(), lr=1e-2)


def one(params, x):
    return functional_call(skeleton, params, (x,))


def slope_of(params, x):
    return grad(lambda point: one(params, point).squeeze())(x)


for _ in range(4):
    x = torch.randn(32, 4)
    outputs = vmap(one, in_dims=(0, None))(ensemble, x)
    slopes = vmap(vmap(slope_of, in_dims=(None, 0)), in_dims=(0, None))(ensemble, x)
    loss = (outputs.squeeze(-1) - x.norm(dim=1)).square().mean() + 1e-2 * slopes.square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
