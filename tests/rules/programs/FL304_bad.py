# options: --stay 'model.embed.*'
"""A part is held still: by a gradient of zeros, which weight decay does not mind, or by freezing."""

import torch
from torch import nn

torch.manual_seed(0)


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.rnn, self.out = nn.Embedding(30, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, tokens):
        return self.out(self.rnn(self.embed(tokens))[1][-1])


model = Reader()
optimizer = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=1e-2)  # <- FL304
for _ in range(4):
    tokens, label = torch.randint(30, (8, 6)), torch.randint(2, (8,))
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(tokens), label).backward()
    model.embed.weight.grad.zero_()  # <- FL304
    optimizer.step()  # <- FL304
