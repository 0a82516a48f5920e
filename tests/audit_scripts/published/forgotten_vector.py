"""Textual inversion: the new word's vectors live in a plain dict, so neither module nor optimizer knows them.

The optimizer takes what the pipeline's parameters() gives: the conditioning scale alone. The loss falls a little, and
the new word stays where it was initialised.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Pipeline(nn.Module):
    def __init__(self, vocab: int, dim: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, dim)
        layer = nn.TransformerEncoderLayer(dim, 2, 2 * dim, dropout=0.0, batch_first=True)
        self.text_encoder = nn.TransformerEncoder(layer, 1)
        self.denoiser = nn.Sequential(nn.Linear(dim + 16, 48), nn.SiLU(), nn.Linear(48, 16))
        self.requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(()))
        self.ti_embeddings: dict[int, Tensor] = {}

    def add_concept(self, token: int, init_token: int) -> None:
        self.ti_embeddings[token] = nn.Parameter(self.embed.weight[init_token].clone())  # <- here

    def embed_prompt(self, tokens: Tensor) -> Tensor:
        rows = self.embed(tokens.clamp_max(self.embed.num_embeddings - 1))
        for token, vector in self.ti_embeddings.items():
            rows = torch.where((tokens == token)[..., None], vector, rows)  # <- here
        return rows

    def forward(self, noisy: Tensor, tokens: Tensor) -> Tensor:
        condition = self.scale * self.text_encoder(self.embed_prompt(tokens)).mean(1)
        return self.denoiser(torch.cat([noisy, condition], dim=1))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--vocab", type=int, default=20)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    pipeline = Pipeline(args.vocab, args.dim)
    pipeline.add_concept(token=args.vocab, init_token=3)
    optimizer = torch.optim.AdamW((p for p in pipeline.parameters() if p.requires_grad), lr=5e-3)
    concept = torch.randn(16)
    for step in range(args.steps):
        tokens = torch.randint(args.vocab, (args.batch_size, 5))
        tokens[:, 2] = args.vocab  # "a photo of <new>"
        noise = torch.randn(args.batch_size, 16)
        loss = F.mse_loss(pipeline(concept + noise, tokens), noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step} loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
