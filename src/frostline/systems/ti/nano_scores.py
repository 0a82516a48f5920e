"""How good nano is, as its judge sees it: shares of pictures with the right shape, colour and background."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from frostline.scenes import NAMED_THINGS, Things, render_things
from frostline.systems.ti.infinity.generation import generate
from frostline.systems.ti.infinity.quantizer import MultiScaleBSQ
from frostline.systems.ti.judge import Judge
from frostline.systems.ti.nano import (
    NANO_DIRECTORY,
    NANO_SAMPLING,
    NANO_SCHEDULE,
    NANO_TOKENIZER,
    TEXT_ENCODER,
    nano_image_tokenizer,
    nano_judge,
    nano_transformer,
)
from frostline.systems.ti.text_encoder import load_text_encoder


def to_pixels(things: Things) -> Tensor:
    """Float32 in [-1, 1]."""
    return things.images.float() / 127.5 - 1


def judge_score(directory: Path = NANO_DIRECTORY, num: int = 600) -> float:
    """Share of unseen pictures of which the written judge says everything right."""
    things = render_things(range(num), split="test")
    return _right(nano_judge(directory), to_pixels(things), things)


@torch.no_grad()
def tokenizer_score(directory: Path = NANO_DIRECTORY, num: int = 600) -> float:
    """Share of unseen pictures of which it does so once they have been bits."""
    things = render_things(range(num), split="test")
    tokenizer, quantizer = nano_image_tokenizer(directory), MultiScaleBSQ(NANO_TOKENIZER.code_bits)
    codes = quantizer.encode(tokenizer.encode(to_pixels(things)), NANO_SCHEDULE)
    return _right(nano_judge(directory), tokenizer.decode(codes.features), things)


@torch.no_grad()
def transformer_score(directory: Path = NANO_DIRECTORY, num: int = 600) -> float:
    """Share of generated pictures of named things that are what the prompt says."""
    things = render_things(range(num), split="test", shapes=NAMED_THINGS)
    model, tokenizer = nano_transformer(directory), nano_image_tokenizer(directory)
    encoder = load_text_encoder(str(directory / TEXT_ENCODER))
    text = encoder.encode([encoder.rewrite(caption, (), required=False) for caption in things.captions()])
    quantizer = MultiScaleBSQ(NANO_TOKENIZER.code_bits)
    chance = torch.Generator().manual_seed(0)
    drawn = generate(model, quantizer, text, NANO_SCHEDULE, sampling=NANO_SAMPLING, generator=chance)
    return _right(nano_judge(directory), tokenizer.decode(drawn.features), things)


def _right(judge: Judge, pixels: Tensor, things: Things) -> float:
    pairs = zip(judge.verdict(pixels.clamp(-1, 1)), things[1:], strict=True)
    return torch.stack([seen == true for seen, true in pairs]).all(0).float().mean().item()
