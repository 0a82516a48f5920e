"""A linear layer as a Function; the bias looks at the wrong place of needs_input_grad."""

import torch
from torch import nn

torch.manual_seed(0)


class LinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, scale):
        ctx.save_for_backward(x, weight)
        ctx.scale = scale
        return scale * (x @ weight.t()) + bias

    @staticmethod
    def backward(ctx, grad_output):
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = ctx.scale * grad_output @ weight
        if ctx.needs_input_grad[1]:
            grad_weight = ctx.scale * grad_output.t() @ x
        if ctx.needs_input_grad[3]:
            grad_bias = grad_output.sum(0)
        return grad_x, grad_weight, grad_bias, None  # <- FL116


class ScaledLinear(nn.Linear):
    def forward(self, x):
        return LinearFunction.apply(x, self.weight, self.bias, 0.5)  # <- FL116


layers = nn.ModuleList([ScaledLinear(6, 16), ScaledLinear(16, 2)])
optimizer = torch.optim.Adam(layers.parameters(), lr=1e-2)
for _ in range(4):
    x = torch.randn(32, 6)
    loss = (layers[1](layers[0](x).tanh()) - x[:, :2]).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
