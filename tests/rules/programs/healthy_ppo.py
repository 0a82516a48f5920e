"""PPO: old probabilities and advantages without grad, and samples whose clipped ratio has no gradient."""

import torch
from torch import nn
from torch.distributions import Normal

torch.manual_seed(0)


class ActorCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 32), nn.Tanh())
        self.mean, self.value = nn.Linear(32, 1), nn.Linear(32, 1)
        self.log_std = nn.Parameter(torch.zeros(1))

    def forward(self, observation):
        h = self.body(observation)
        return Normal(self.mean(h), self.log_std.exp()), self.value(h).squeeze(-1)


agent = ActorCritic()
optimizer = torch.optim.Adam(agent.parameters(), lr=3e-3, eps=1e-5)
for _ in range(2):
    observation = torch.randn(64, 3)
    with torch.no_grad():
        policy, value = agent(observation)
        action = policy.sample()
        old = policy.log_prob(action).sum(-1)
    returns = -(action.squeeze(-1) - observation[:, 0]).square()
    advantage = returns - value
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    for _ in range(2):
        for index in torch.randperm(64).split(32):
            policy, value = agent(observation[index])
            ratio = (policy.log_prob(action[index]).sum(-1) - old[index]).exp()
            clipped = ratio.clamp(0.8, 1.2)
            surrogate = -torch.min(ratio * advantage[index], clipped * advantage[index]).mean()
            error = 0.5 * (value - returns[index]).square().mean()
            entropy = policy.entropy().mean()
            loss = surrogate + 0.5 * error - 0.01 * entropy
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()
