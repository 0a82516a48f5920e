"""Non-saturating GAN with a lazy R1 penalty, requires_grad toggles and an averaged generator."""

from __future__ import annotations

import argparse
import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def toggle_grad(model: nn.Module, requires_grad: bool) -> None:
    for p in model.parameters():
        p.requires_grad_(requires_grad)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, beta: float) -> None:
    for p_average, p in zip(average.parameters(), model.parameters(), strict=True):
        p_average.lerp_(p, 1 - beta)
    for b_average, b in zip(average.buffers(), model.buffers(), strict=True):
        b_average.copy_(b)


def r1_penalty(d_out: Tensor, x_in: Tensor) -> Tensor:
    (grad,) = torch.autograd.grad(outputs=d_out.sum(), inputs=x_in, create_graph=True)
    return grad.pow(2).reshape(x_in.size(0), -1).sum(1).mean()


class Generator(nn.Sequential):
    def __init__(self, z_dim: int, width: int) -> None:
        super().__init__(
            nn.Linear(z_dim, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, 2),
        )


class Discriminator(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Linear(2, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2), nn.Linear(width, 1)
        )


def ring(batch: int) -> Tensor:
    angle = torch.randint(8, (batch,)) * (2 * math.pi / 8)
    return torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(batch, 2)


class Trainer:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.generator = Generator(args.z_dim, args.width)
        self.discriminator = Discriminator(args.width)
        self.generator_test = copy.deepcopy(self.generator).eval()
        toggle_grad(self.generator_test, False)
        self.g_optimizer = torch.optim.RMSprop(self.generator.parameters(), lr=args.lr, alpha=0.99, eps=1e-8)
        self.d_optimizer = torch.optim.RMSprop(self.discriminator.parameters(), lr=args.lr, alpha=0.99, eps=1e-8)

    def discriminator_trainstep(self, x_real: Tensor, it: int) -> tuple[float, float | None]:
        toggle_grad(self.generator, False)
        toggle_grad(self.discriminator, True)
        self.generator.train()
        self.discriminator.train()
        self.d_optimizer.zero_grad()

        regularise = it % self.args.r1_every == 0
        x_real.requires_grad_(regularise)
        d_real = self.discriminator(x_real)
        d_fake = self.discriminator(self.generator(torch.randn(x_real.size(0), self.args.z_dim)))
        dloss = F.softplus(-d_real).mean() + F.softplus(d_fake).mean()
        reg = None
        total = dloss
        if regularise:
            penalty = r1_penalty(d_real, x_real)
            total = dloss + 0.5 * self.args.reg_param * self.args.r1_every * penalty
            reg = penalty.item()
        total.backward()
        self.d_optimizer.step()
        toggle_grad(self.discriminator, False)
        return dloss.item(), reg

    def generator_trainstep(self) -> float:
        toggle_grad(self.generator, True)
        toggle_grad(self.discriminator, False)
        self.generator.train()
        self.discriminator.train()
        self.g_optimizer.zero_grad()
        d_fake = self.discriminator(self.generator(torch.randn(self.args.batch_size, self.args.z_dim)))
        gloss = F.softplus(-d_fake).mean()
        gloss.backward()
        self.g_optimizer.step()
        update_average(self.generator_test, self.generator, self.args.beta)
        return gloss.item()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--z-dim", type=int, default=8)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--reg-param", type=float, default=10.0)
    parser.add_argument("--r1-every", type=int, default=2)
    parser.add_argument("--beta", type=float, default=0.99)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    trainer = Trainer(args)
    reg = 0.0
    for it in range(args.iterations):
        dloss, new_reg = trainer.discriminator_trainstep(ring(args.batch_size), it)
        reg = reg if new_reg is None else new_reg
        gloss = trainer.generator_trainstep()
        if it % 4 == 3:
            with torch.no_grad():
                radius = trainer.generator_test(torch.randn(64, args.z_dim)).norm(dim=1).mean().item()
            print(f"it {it:3d} d_loss {dloss:.4f} g_loss {gloss:.4f} reg {reg:.4f} radius {radius:.3f}")


if __name__ == "__main__":
    main()
