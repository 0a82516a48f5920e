"""MAML on sinusoids: a differentiable inner loop, learnt step sizes and a query loss for the outer update."""

from __future__ import annotations

import argparse
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call


def sample_task(num_shots: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    amplitude, phase = 0.1 + 4.9 * torch.rand(()), math.pi * torch.rand(())
    x = torch.rand(2 * num_shots, 1) * 10 - 5
    y = amplitude * torch.sin(x - phase)
    return x[:num_shots], y[:num_shots], x[num_shots:], y[num_shots:]


class MetaLearner(nn.Module):
    def __init__(self, width: int, inner_lr: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(1, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
        )
        names = [name.replace(".", "_") for name, _ in self.net.named_parameters()]
        self.log_lr = nn.ParameterDict({name: nn.Parameter(torch.tensor(math.log(inner_lr))) for name in names})

    def adapt(self, x: Tensor, y: Tensor, num_steps: int) -> dict[str, Tensor]:
        weights = dict(self.net.named_parameters())
        for _ in range(num_steps):
            loss = F.mse_loss(functional_call(self.net, weights, (x,)), y)
            grads = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
            weights = {
                name: w - self.log_lr[name.replace(".", "_")].exp() * g
                for (name, w), g in zip(weights.items(), grads, strict=True)
            }
        return weights


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--shots", type=int, default=10)
    parser.add_argument("--inner-steps", type=int, default=2)
    parser.add_argument("--inner-lr", type=float, default=0.01)
    parser.add_argument("--meta-lr", type=float, default=1e-3)
    parser.add_argument("--width", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    learner = MetaLearner(args.width, args.inner_lr)
    meta_optimizer = torch.optim.Adam(learner.parameters(), lr=args.meta_lr)
    for iteration in range(args.iterations):
        meta_optimizer.zero_grad()
        meta_loss = 0.0
        for _ in range(args.tasks):
            x_support, y_support, x_query, y_query = sample_task(args.shots)
            fast = learner.adapt(x_support, y_support, args.inner_steps)
            meta_loss = meta_loss + F.mse_loss(functional_call(learner.net, fast, (x_query,)), y_query)
        meta_loss = meta_loss / args.tasks
        meta_loss.backward()
        meta_optimizer.step()
        if iteration % 4 == 3:
            print(f"iteration {iteration} meta loss {meta_loss.item():.4f}")


if __name__ == "__main__":
    main()
