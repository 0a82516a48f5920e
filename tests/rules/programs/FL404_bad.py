"""WGAN-GP on words instead of sentences."""

import torch
from torch import nn

torch.manual_seed(0)


def interpolated(real, fake, share):
    return share * real + (1 - share) * fake


class Critic(nn.Module):
    """Judges sentences, which come as one long list of words with their lengths."""

    def __init__(self):
        super().__init__()
        self.words, self.score = nn.Sequential(nn.Linear(12, 16), nn.Tanh()), nn.Linear(16, 1)

    def forward(self, words, length):
        return self.score(self.words(words).view(-1, length, 16).mean(1)).squeeze(1)


def gradient_penalty(critic, words, length):
    scores = critic(words, length)
    gradient = torch.autograd.grad(
        outputs=scores, inputs=words, grad_outputs=torch.ones_like(scores), create_graph=True
    )[0]
    norms = gradient.view(words.size(0), -1).norm(2, dim=1)
    return ((norms - 1) ** 2).mean()  # <- FL404


critic, generator = Critic(), nn.Linear(4, 12)
optimizer = torch.optim.Adam(critic.parameters(), lr=1e-4, betas=(0.0, 0.9))
for _ in range(3):
    real = torch.randn(8 * 5, 12)
    with torch.no_grad():
        fake = generator(torch.randn(8 * 5, 4))
    between = interpolated(real, fake, torch.rand(40, 1)).requires_grad_()
    loss = critic(fake, 5).mean() - critic(real, 5).mean() + 10 * gradient_penalty(critic, between, 5)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
