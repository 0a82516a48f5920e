"""Semantic communication with Florence-2: a codec sends the tower's features over a noisy channel.

The receiver's half of the model is frozen, and "to save memory" it runs under no_grad. The power penalty still has a
gradient, so nothing complains: the transmitter learns to be quiet and the receiver's codec learns nothing.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Florence2Config, Florence2ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

VOCAB, WIDTH, NUM_CELLS = 64, 32, 4


def tiny_florence2() -> Florence2ForConditionalGeneration:
    vision = dict(
        embed_dim=[8, 16, 24, WIDTH],
        num_heads=[1, 2, 3, 4],
        num_groups=[1, 2, 3, 4],
        depths=[1, 1, 1, 1],
        patch_stride=[4, 2, 2, 1],
        window_size=4,
        projection_dim=24,
        max_position_embeddings=8,
        max_temporal_embeddings=4,
        drop_path_rate=0.0,
    )
    text = dict(
        model_type="bart",
        vocab_size=VOCAB,
        d_model=24,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
    )
    return Florence2ForConditionalGeneration(
        Florence2Config(vision_config=vision, text_config=text, image_token_id=VOCAB - 1)
    )


class Compression(nn.Module):
    """Transmitter and receiver of the codec, with a noisy channel between."""

    def __init__(self, width: int, num_symbols: int) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, num_symbols))
        self.decode = nn.Sequential(nn.Linear(num_symbols, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, features: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        code = self.encode(features)
        return self.decode(code + sigma * torch.randn_like(code)), code


class SemanticLink(nn.Module):
    def __init__(self, num_symbols: int) -> None:
        super().__init__()
        self.florence = tiny_florence2().requires_grad_(False).eval()
        self.compression = Compression(WIDTH, num_symbols)

    def forward(self, pixels: Tensor, caption: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        model = self.florence.model
        with torch.no_grad():  # harmless
            features = model.vision_tower(pixels).last_hidden_state.flatten(2).transpose(1, 2)
        received, code = self.compression(features, sigma)
        with torch.no_grad():  # <- here
            cells = received.transpose(1, 2).unflatten(2, (NUM_CELLS, NUM_CELLS))
            projected = model.multi_modal_projector(cells)
            hidden = model.language_model.encoder(inputs_embeds=projected).last_hidden_state
            logits = self.florence(encoder_outputs=BaseModelOutput(last_hidden_state=hidden), labels=caption).logits
        return logits, code


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--num-symbols", type=int, default=8)
    parser.add_argument("--sigma", type=float, default=0.3)
    parser.add_argument("--power-weight", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    link = SemanticLink(args.num_symbols)
    optimizer = torch.optim.Adam(link.compression.parameters(), lr=1e-3)
    for step in range(args.steps):
        pixels = torch.randn(args.batch_size, 3, 64, 64)
        caption = torch.randint(4, VOCAB - 1, (args.batch_size, 5))
        logits, code = link(pixels, caption, args.sigma)
        caption_loss = F.cross_entropy(logits.flatten(0, 1), caption.flatten())
        power_loss = code.square().mean()
        loss = caption_loss + args.power_weight * power_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step} caption {caption_loss.item():.4f} power {power_loss.item():.4f}")


if __name__ == "__main__":
    main()
