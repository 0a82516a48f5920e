"""PPO on a vector of cart-poles: rollouts under no_grad, generalised advantages, clipped minibatch updates."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.distributions import Categorical


class CartPoles:
    """Cart-pole with the usual constants; an environment that has ended starts again by itself."""

    def __init__(self, num_envs: int) -> None:
        self.state = self.fresh(num_envs)

    @staticmethod
    def fresh(num: int) -> Tensor:
        return (torch.rand(num, 4) - 0.5) * 0.1

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, x_dot, theta, theta_dot = self.state.unbind(1)
        force = torch.where(action == 1, 10.0, -10.0)
        temp = (force + 0.05 * theta_dot**2 * theta.sin()) / 1.1
        theta_acc = (9.8 * theta.sin() - theta.cos() * temp) / (0.5 * (4 / 3 - 0.1 * theta.cos() ** 2 / 1.1))
        x_acc = temp - 0.05 * theta_acc * theta.cos() / 1.1
        parts = [x + 0.02 * x_dot, x_dot + 0.02 * x_acc, theta + 0.02 * theta_dot, theta_dot + 0.02 * theta_acc]
        state = torch.stack(parts, dim=1)
        done = (state[:, 0].abs() > 2.4) | (state[:, 2].abs() > 0.2095)
        self.state = torch.where(done[:, None], self.fresh(len(state)), state)
        return self.state, torch.ones(len(state)), done.float()


def layer_init(layer: nn.Linear, std: float = 2**0.5) -> nn.Linear:
    nn.init.orthogonal_(layer.weight, std)
    nn.init.zeros_(layer.bias)
    return layer


class Agent(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            layer_init(nn.Linear(4, width)), nn.Tanh(), layer_init(nn.Linear(width, width)), nn.Tanh()
        )
        self.actor = layer_init(nn.Linear(width, 2), std=0.01)
        self.critic = layer_init(nn.Linear(width, 1), std=1.0)

    def get_value(self, x: Tensor) -> Tensor:
        return self.critic(self.trunk(x)).squeeze(-1)

    def get_action_and_value(self, x: Tensor, action: Tensor | None = None) -> tuple[Tensor, ...]:
        hidden = self.trunk(x)
        policy = Categorical(logits=self.actor(hidden))
        if action is None:
            action = policy.sample()
        return action, policy.log_prob(action), policy.entropy(), self.critic(hidden).squeeze(-1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--num-updates", type=int, default=3)
    parser.add_argument("--num-envs", type=int, default=4)
    parser.add_argument("--num-steps", type=int, default=16)
    parser.add_argument("--num-minibatches", type=int, default=2)
    parser.add_argument("--update-epochs", type=int, default=2)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2.5e-4)
    parser.add_argument("--gamma", type=float, default=0.99)
    parser.add_argument("--gae-lambda", type=float, default=0.95)
    parser.add_argument("--clip-coef", type=float, default=0.2)
    parser.add_argument("--ent-coef", type=float, default=0.01)
    parser.add_argument("--vf-coef", type=float, default=0.5)
    parser.add_argument("--max-grad-norm", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    envs = CartPoles(args.num_envs)
    agent = Agent(args.width)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.lr, eps=1e-5)
    shape = (args.num_steps, args.num_envs)
    obs, actions = torch.zeros(*shape, 4), torch.zeros(shape, dtype=torch.long)
    logprobs, rewards, dones, values = (torch.zeros(shape) for _ in range(4))
    next_obs, next_done = envs.state, torch.zeros(args.num_envs)

    for update in range(args.num_updates):
        optimizer.param_groups[0]["lr"] = args.lr * (1 - update / args.num_updates)
        for step in range(args.num_steps):
            obs[step], dones[step] = next_obs, next_done
            with torch.no_grad():
                actions[step], logprobs[step], _, values[step] = agent.get_action_and_value(next_obs)
            next_obs, rewards[step], next_done = envs.step(actions[step])

        with torch.no_grad():
            next_value = agent.get_value(next_obs)
            advantages, last = torch.zeros(shape), torch.zeros(args.num_envs)
            for t in reversed(range(args.num_steps)):
                alive = 1.0 - (next_done if t == args.num_steps - 1 else dones[t + 1])
                following = next_value if t == args.num_steps - 1 else values[t + 1]
                delta = rewards[t] + args.gamma * following * alive - values[t]
                advantages[t] = last = delta + args.gamma * args.gae_lambda * alive * last
            returns = advantages + values

        b_obs = obs.reshape(-1, 4)
        b_actions, b_logprobs, b_advantages, b_returns, b_values = (
            t.reshape(-1) for t in (actions, logprobs, advantages, returns, values)
        )
        clipfracs = []
        for _ in range(args.update_epochs):
            for mb in torch.randperm(b_obs.size(0)).chunk(args.num_minibatches):
                _, newlogprob, entropy, newvalue = agent.get_action_and_value(b_obs[mb], b_actions[mb])
                logratio = newlogprob - b_logprobs[mb]
                ratio = logratio.exp()
                with torch.no_grad():
                    approx_kl = ((ratio - 1) - logratio).mean()
                    clipfracs.append(((ratio - 1.0).abs() > args.clip_coef).float().mean().item())
                mb_advantages = b_advantages[mb]
                mb_advantages = (mb_advantages - mb_advantages.mean()) / (mb_advantages.std() + 1e-8)
                pg_loss = torch.max(
                    -mb_advantages * ratio,
                    -mb_advantages * ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef),
                ).mean()
                v_clipped = b_values[mb] + (newvalue - b_values[mb]).clamp(-args.clip_coef, args.clip_coef)
                v_loss = 0.5 * torch.max((newvalue - b_returns[mb]) ** 2, (v_clipped - b_returns[mb]) ** 2).mean()
                loss = pg_loss - args.ent_coef * entropy.mean() + args.vf_coef * v_loss
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()
        clipped = sum(clipfracs) / len(clipfracs)
        print(f"update {update} value {v_loss.item():.4f} kl {approx_kl.item():.5f} clipped {clipped:.2f}")


if __name__ == "__main__":
    main()
