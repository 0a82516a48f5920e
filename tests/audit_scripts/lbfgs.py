"""A physics-informed network for Burgers' equation, fitted by L-BFGS through a closure."""

import argparse
import math

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--outer-steps", type=int, default=4)
parser.add_argument("--inner-steps", type=int, default=5)
parser.add_argument("--num-points", type=int, default=128)
parser.add_argument("--viscosity", type=float, default=0.01 / math.pi)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()
torch.manual_seed(args.seed)

net = nn.Sequential(nn.Linear(2, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1))
optimizer = torch.optim.LBFGS(
    net.parameters(), lr=1.0, max_iter=args.inner_steps, history_size=10, line_search_fn="strong_wolfe"
)

t = torch.rand(args.num_points, 1, requires_grad=True)
x = (torch.rand(args.num_points, 1) * 2 - 1).requires_grad_()
x_initial = torch.linspace(-1, 1, 32)[:, None]
u_initial = -torch.sin(math.pi * x_initial)
t_wall = torch.rand(32, 1)
x_wall = torch.where(torch.arange(32)[:, None] < 16, -1.0, 1.0)


def gradient(output, variable):
    return torch.autograd.grad(output, variable, torch.ones_like(output), create_graph=True)[0]


def residual():
    u = net(torch.cat([t, x], dim=1))
    u_t, u_x = gradient(u, t), gradient(u, x)
    return u_t + u * u_x - args.viscosity * gradient(u_x, x)


num_evaluations = 0


def closure():
    global num_evaluations
    optimizer.zero_grad()
    loss_initial = (net(torch.cat([torch.zeros_like(x_initial), x_initial], dim=1)) - u_initial).square().mean()
    loss_wall = net(torch.cat([t_wall, x_wall], dim=1)).square().mean()
    loss_equation = residual().square().mean()
    loss = loss_initial + loss_wall + loss_equation
    loss.backward()
    num_evaluations += 1
    return loss


for step in range(args.outer_steps):
    loss = optimizer.step(closure)
    print(f"step {step} loss {loss.item():.5f} after {num_evaluations} evaluations")
