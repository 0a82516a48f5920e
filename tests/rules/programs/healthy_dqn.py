"""DQN: the target network is a copy under no_grad, synchronised by load_state_dict; argmax chooses actions."""

import random

import torch
from torch import nn

torch.manual_seed(0)
random.seed(0)


def make_q():
    return nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))


online, target = make_q(), make_q()
target.load_state_dict(online.state_dict())
target.requires_grad_(False)
optimizer = torch.optim.Adam(online.parameters(), lr=1e-3)
memory, state = [], torch.randn(4)
for step in range(24):
    with torch.no_grad():
        action = random.randrange(2) if random.random() < 0.2 else online(state).argmax().item()
    following = state + 0.1 * torch.randn(4)
    memory.append((state, action, float(following[0] > state[0]), following))
    state = following
    if len(memory) < 16 or step % 2:
        continue
    batch = random.sample(memory, 8)
    states, followings = torch.stack([b[0] for b in batch]), torch.stack([b[3] for b in batch])
    actions, rewards = torch.tensor([b[1] for b in batch]), torch.tensor([b[2] for b in batch])
    with torch.no_grad():
        best = online(followings).argmax(1, keepdim=True)
        bootstrapped = rewards + 0.99 * target(followings).gather(1, best).squeeze(1)
    values = online(states).gather(1, actions[:, None]).squeeze(1)
    loss = nn.functional.smooth_l1_loss(values, bootstrapped)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_value_(online.parameters(), 100)
    optimizer.step()
    if step % 8 == 0:
        target.load_state_dict(online.state_dict())
