"""A character LSTM trained by truncated backpropagation: the state goes on, its gradient stops."""

import argparse

import torch
import torch.nn.functional as F
from torch import nn

TEXT = "the quick brown fox jumps over the lazy dog and the lazy dog sleeps under the quick brown fox. " * 24


class CharLM(nn.Module):
    def __init__(self, vocab, dim, num_layers, dropout):
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.Embedding(vocab, dim)
        self.rnn = nn.LSTM(dim, dim, num_layers, dropout=dropout)
        self.decoder = nn.Linear(dim, vocab)
        self.decoder.weight = self.encoder.weight  # tied
        self.num_layers, self.dim = num_layers, dim

    def forward(self, tokens, hidden):
        output, hidden = self.rnn(self.drop(self.encoder(tokens)), hidden)
        return self.decoder(self.drop(output)), hidden

    def init_hidden(self, batch_size):
        weight = next(self.parameters())
        return tuple(weight.new_zeros(self.num_layers, batch_size, self.dim) for _ in range(2))


def repackage_hidden(h):
    """Wrap hidden states in new tensors, to detach them from their history."""
    if isinstance(h, torch.Tensor):
        return h.detach()
    return tuple(repackage_hidden(v) for v in h)


def batchify(data, batch_size):
    length = data.size(0) // batch_size
    return data.narrow(0, 0, length * batch_size).view(batch_size, -1).t().contiguous()


def evaluate(model, source, bptt):
    model.eval()
    total_loss, hidden = 0.0, model.init_hidden(source.size(1))
    with torch.no_grad():
        for i in range(0, source.size(0) - 1, bptt):
            length = min(bptt, len(source) - 1 - i)
            output, hidden = model(source[i : i + length], hidden)
            hidden = repackage_hidden(hidden)
            total_loss += (
                length * F.cross_entropy(output.flatten(0, 1), source[i + 1 : i + 1 + length].flatten()).item()
            )
    return total_loss / (len(source) - 1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--bptt", type=int, default=16)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2.0)
    parser.add_argument("--clip", type=float, default=0.25)
    parser.add_argument("--seed", type=int, default=1111)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    alphabet = sorted(set(TEXT))
    data = torch.tensor([alphabet.index(char) for char in TEXT])
    train_data, valid_data = batchify(data[:-400], args.batch_size), batchify(data[-400:], args.batch_size)
    model = CharLM(len(alphabet), args.dim, num_layers=2, dropout=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr)
    for epoch in range(args.epochs):
        model.train()
        total_loss, num_chunks = 0.0, 0
        hidden = model.init_hidden(args.batch_size)
        for i in range(0, train_data.size(0) - 1 - args.bptt, args.bptt):
            inputs, targets = train_data[i : i + args.bptt], train_data[i + 1 : i + 1 + args.bptt]
            model.zero_grad()
            hidden = repackage_hidden(hidden)
            output, hidden = model(inputs, hidden)
            loss = F.cross_entropy(output.flatten(0, 1), targets.flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), args.clip)
            optimizer.step()
            total_loss += loss.item()
            num_chunks += 1
        valid_loss = evaluate(model, valid_data, args.bptt)
        print(f"epoch {epoch} train {total_loss / num_chunks:.3f} valid {valid_loss:.3f}")


if __name__ == "__main__":
    main()
