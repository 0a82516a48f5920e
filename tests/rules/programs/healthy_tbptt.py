"""Truncated BPTT: the hidden state crosses the border between chunks detached."""

import torch
from torch import nn

torch.manual_seed(0)


class CharRNN(nn.Module):
    def __init__(self, vocabulary=20, width=24):
        super().__init__()
        self.embed, self.rnn, self.out = (
            nn.Embedding(vocabulary, width),
            nn.LSTM(width, width),
            nn.Linear(width, vocabulary),
        )

    def forward(self, tokens, state):
        h, state = self.rnn(self.embed(tokens), state)
        return self.out(h), state


def repackage(state):
    return tuple(s.detach() for s in state)


model = CharRNN()
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
text = torch.randint(20, (41, 8))
state = (torch.zeros(1, 8, 24), torch.zeros(1, 8, 24))
total = 0.0
for start in range(0, 40, 10):
    state = repackage(state)
    logits, state = model(text[start : start + 10], state)
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), text[start + 1 : start + 11].flatten())
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.25)
    optimizer.step()
    total += loss.item()
