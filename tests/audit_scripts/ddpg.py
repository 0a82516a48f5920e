"""DDPG on a batch of pendulums: target networks, polyak averaging and one optimizer for each network."""

from __future__ import annotations

import argparse
import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GAMMA = 0.98


class Pendulums:
    """A few pendulums swung up at once; the torque is in [-2, 2]."""

    def __init__(self, num_envs: int) -> None:
        self.angle = (torch.rand(num_envs) * 2 - 1) * math.pi
        self.speed = torch.rand(num_envs) * 2 - 1

    def observe(self) -> Tensor:
        return torch.stack([self.angle.cos(), self.angle.sin(), self.speed / 8], dim=1)

    def step(self, torque: Tensor) -> tuple[Tensor, Tensor]:
        wrapped = (self.angle + math.pi) % (2 * math.pi) - math.pi
        reward = -(wrapped**2 + 0.1 * self.speed**2 + 0.001 * torque**2)
        self.speed = (self.speed + 0.05 * (15 * self.angle.sin() + 3 * torque)).clamp(-8, 8)
        self.angle = self.angle + 0.05 * self.speed
        return self.observe(), reward / 16


class ReplayBuffer:
    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.rows: list[tuple[Tensor, ...]] = []

    def push(self, *batch: Tensor) -> None:
        self.rows.extend(zip(*batch, strict=True))
        del self.rows[: -self.capacity]

    def sample(self, num: int) -> list[Tensor]:
        picked = [self.rows[i] for i in torch.randint(len(self.rows), (num,)).tolist()]
        return [torch.stack(column) for column in zip(*picked, strict=True)]


class Actor(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(3, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
        )

    def forward(self, obs: Tensor) -> Tensor:
        return 2 * torch.tanh(self.net(obs))


class Critic(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
        )

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        return self.net(torch.cat([obs, action], dim=1)).squeeze(1)


def soft_update(target: nn.Module, source: nn.Module, tau: float) -> None:
    with torch.no_grad():
        for p_target, p in zip(target.parameters(), source.parameters(), strict=True):
            p_target.data.mul_(1 - tau)
            p_target.data.add_(tau * p.data)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--num-envs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--start-steps", type=int, default=5)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--tau", type=float, default=0.01)
    parser.add_argument("--noise", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    actor, critic = Actor(args.width), Critic(args.width)
    actor_target, critic_target = copy.deepcopy(actor), copy.deepcopy(critic)
    for p in (*actor_target.parameters(), *critic_target.parameters()):
        p.requires_grad = False
    actor_optimizer = torch.optim.Adam(actor.parameters(), lr=1e-3)
    critic_optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3, weight_decay=1e-4)
    envs, buffer = Pendulums(args.num_envs), ReplayBuffer(capacity=5000)

    obs = envs.observe()
    for t in range(args.steps):
        if t < args.start_steps:
            action = torch.rand(args.num_envs, 1) * 4 - 2
        else:
            with torch.no_grad():
                action = actor(obs)
            action = (action + args.noise * torch.randn_like(action)).clamp(-2, 2)
        next_obs, reward = envs.step(action.squeeze(1))
        buffer.push(obs, action, reward, next_obs)
        obs = next_obs
        if t < args.start_steps:
            continue

        o, a, r, o2 = buffer.sample(args.batch_size)
        with torch.no_grad():
            q_next = critic_target(o2, actor_target(o2))
            backup = r + GAMMA * q_next
        critic_loss = F.mse_loss(critic(o, a), backup)
        critic_optimizer.zero_grad()
        critic_loss.backward()
        critic_optimizer.step()

        actor_loss = -critic(o, actor(o)).mean()
        actor_optimizer.zero_grad()
        actor_loss.backward()
        actor_optimizer.step()

        soft_update(actor_target, actor, args.tau)
        soft_update(critic_target, critic, args.tau)
        if t % 10 == 9:
            print(f"step {t} critic {critic_loss.item():.4f} actor {actor_loss.item():.4f} {reward.mean().item():.3f}")


if __name__ == "__main__":
    main()
