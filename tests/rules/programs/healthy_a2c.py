"""A2C with a shared body: the advantage is detached, so the critic's head gets nothing from the policy term."""

import torch
from torch import nn

torch.manual_seed(0)
body = nn.GRUCell(4, 16)
heads = nn.ModuleDict({"policy": nn.Linear(16, 3), "value": nn.Linear(16, 1)})
optimizer = torch.optim.RMSprop([*body.parameters(), *heads.parameters()], lr=7e-4)
hidden = torch.zeros(8, 16)
for _ in range(4):
    hidden = hidden.detach()
    log_probs, values, rewards, entropies = [], [], [], []
    for _ in range(5):
        observation = torch.randn(8, 4)
        hidden = body(observation, hidden)
        distribution = torch.distributions.Categorical(logits=heads["policy"](hidden))
        action = distribution.sample()
        log_probs.append(distribution.log_prob(action))
        entropies.append(distribution.entropy())
        values.append(heads["value"](hidden).squeeze(-1))
        rewards.append((action == observation[:, :3].argmax(-1)).float())
    with torch.no_grad():
        running = heads["value"](body(torch.randn(8, 4), hidden)).squeeze(-1)
    returns = []
    for reward in reversed(rewards):
        running = reward + 0.99 * running
        returns.insert(0, running)
    advantage = torch.stack(returns) - torch.stack(values)
    actor_loss = -(torch.stack(log_probs) * advantage.detach()).mean()
    critic_loss = advantage.pow(2).mean()
    loss = actor_loss + 0.5 * critic_loss - 0.01 * torch.stack(entropies).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
