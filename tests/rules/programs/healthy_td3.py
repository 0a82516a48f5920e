"""TD3: twin critics, an actor that is updated every second step, targets that follow slowly."""

import copy

import torch
from torch import nn

torch.manual_seed(0)


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.q1 = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 1))
        self.q2 = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, state, action):
        both = torch.cat([state, action], dim=-1)
        return self.q1(both), self.q2(both)


actor = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 1), nn.Tanh())
critic = Critic()
actor_target, critic_target = copy.deepcopy(actor), copy.deepcopy(critic)
for module in (actor_target, critic_target):
    module.requires_grad_(False)
opt_actor = torch.optim.Adam(actor.parameters(), lr=1e-3)
opt_critic = torch.optim.Adam(critic.parameters(), lr=1e-3)

for step in range(8):
    state, action, reward, following = (
        torch.randn(32, 4),
        torch.rand(32, 1) * 2 - 1,
        torch.randn(32, 1),
        torch.randn(32, 4),
    )
    with torch.no_grad():
        noise = (0.2 * torch.randn_like(action)).clamp(-0.5, 0.5)
        q_target = torch.min(*critic_target(following, (actor_target(following) + noise).clamp(-1, 1)))
        y = reward + 0.99 * q_target
    q1, q2 = critic(state, action)
    critic_loss = nn.functional.mse_loss(q1, y) + nn.functional.mse_loss(q2, y)
    opt_critic.zero_grad()
    critic_loss.backward()
    opt_critic.step()

    if step % 2 == 1:
        critic.requires_grad_(False)
        actor_loss = -critic(state, actor(state))[0].mean()
        opt_actor.zero_grad()
        actor_loss.backward()
        opt_actor.step()
        critic.requires_grad_(True)
        with torch.no_grad():
            for slow, fast in ((actor_target, actor), (critic_target, critic)):
                for p_slow, p_fast in zip(slow.parameters(), fast.parameters(), strict=True):
                    p_slow.mul_(0.995).add_(0.005 * p_fast)
