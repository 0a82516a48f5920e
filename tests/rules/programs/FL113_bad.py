"""DDPG, the actor first: its loss also fills the critic's gradients, which are cleared at the top of the loop only."""

import torch
from torch import nn

torch.manual_seed(0)


class Agent:
    def __init__(self):
        self.actor = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2), nn.Tanh())
        self.critic = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))

    def q(self, state, action):
        return self.critic(torch.cat([state, action], dim=1))


agent = Agent()
opt_actor = torch.optim.Adam(agent.actor.parameters(), lr=1e-3)
opt_critic = torch.optim.Adam(agent.critic.parameters(), lr=1e-3)
for _ in range(4):
    state, action, target = torch.randn(32, 4), torch.rand(32, 2), torch.randn(32, 1)
    for optimizer in (opt_actor, opt_critic):
        optimizer.zero_grad()
    actor_loss = -agent.q(state, agent.actor(state)).mean()
    actor_loss.backward()  # <- FL113
    opt_actor.step()
    critic_loss = nn.functional.mse_loss(agent.q(state, action), target)
    critic_loss.backward()
    opt_critic.step()  # <- FL113
