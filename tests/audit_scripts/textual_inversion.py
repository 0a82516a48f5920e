"""Textual inversion: one new word's vector is learnt through a frozen text encoder; all other rows stay."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEMPLATES = ("a photo of a {}", "a rendering of a {}", "the photo of a small {}", "a close up photo of a {}")
WORDS = ["<pad>", *sorted({word for template in TEMPLATES for word in template.split() if word != "{}"})]
PLACEHOLDER = len(WORDS)


def tokenize(template: str, length: int = 8) -> list[int]:
    tokens = [PLACEHOLDER if word == "{}" else WORDS.index(word) for word in template.split()]
    return tokens + [0] * (length - len(tokens))


class TextEncoder(nn.Module):
    def __init__(self, dim: int, num_layers: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(len(WORDS), dim)
        self.position_embedding = nn.Embedding(8, dim)
        layer = nn.TransformerEncoderLayer(dim, 2, 4 * dim, dropout=0.1, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        self.final_norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, new_vector: Tensor) -> Tensor:
        table = torch.cat([self.token_embedding.weight, new_vector[None]])
        hidden = F.embedding(tokens, table) + self.position_embedding.weight
        return self.final_norm(self.layers(hidden)).mean(1)


class Denoiser(nn.Module):
    def __init__(self, dim: int, cond_dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim + cond_dim + 1, 64), nn.SiLU(), nn.Linear(64, dim))

    def forward(self, noisy: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        return self.net(torch.cat([noisy, t[:, None], condition], dim=1))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--init-word", default="photo")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    text_encoder, denoiser = TextEncoder(args.dim, 2), Denoiser(16, args.dim)
    for frozen in (text_encoder, denoiser):
        frozen.requires_grad_(False)
        frozen.eval()
    rows_before = text_encoder.token_embedding.weight.clone()

    new_vector = text_encoder.token_embedding.weight[WORDS.index(args.init_word)].clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([new_vector], lr=args.lr, weight_decay=1e-2)
    concept = torch.randn(4, 16)
    prompts = torch.tensor([tokenize(template) for template in TEMPLATES])
    for step in range(args.steps):
        latents = concept[torch.randint(4, (args.batch_size,))]
        noise, t = torch.randn_like(latents), torch.rand(args.batch_size)
        noisy = (1 - t[:, None]).sqrt() * latents + t[:, None].sqrt() * noise
        condition = text_encoder(prompts[torch.randint(4, (args.batch_size,))], new_vector)
        loss = F.mse_loss(denoiser(noisy, t, condition), noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 4 == 3:
            print(f"step {step} loss {loss.item():.4f} norm {new_vector.detach().norm().item():.4f}")
    assert torch.equal(rows_before, text_encoder.token_embedding.weight), "the other rows must stay"


if __name__ == "__main__":
    main()
