"""A small Infinity for tests."""

import torch

from frostline.regions import freeze_
from frostline.systems.ti.infinity.schedule import square_schedule
from frostline.systems.ti.infinity.sizes import InfinityConfig
from frostline.systems.ti.infinity.text import CompactText
from frostline.systems.ti.infinity.transformer import Infinity

SCHEDULE = square_schedule(1, 2, 4)


def tiny_config(**changes):
    """Two blocks of width 32, 6 bits, text of width 24."""
    settings = {"depth": 2, "width": 32, "num_heads": 2, "text_width": 24, "code_bits": 6, "max_text_tokens": 8}
    return InfinityConfig(**settings | {"mlp_ratio": 8.0, "cross_attention": "float32"} | changes)


def tiny_model(seed=0, **changes):
    """Frozen, with weights in which every part matters."""
    torch.manual_seed(seed)
    model = Infinity(tiny_config(**changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3 if parameter.dim() < 2 else parameter.size(-1) ** -0.5)
    freeze_(model)
    return model


def tiny_text(*lengths, width=24, seed=1):
    """Prompts of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    return CompactText(torch.randn(sum(lengths), width, generator=generator), lengths)


def tiny_inputs(num=2, schedule=SCHEDULE, bits=6, seed=2):
    """What the scales behind the first see."""
    return torch.randn(num, schedule.num_tokens - 1, bits, generator=torch.Generator().manual_seed(seed))
