"""Where pictures are drawn, and how."""

from contextlib import nullcontext
from types import SimpleNamespace

import torch

from frostline.systems.ti import drawing
from frostline.systems.ti.config import SamplingConfig
from frostline.systems.ti.drawing import Painter
from frostline.systems.ti.infinity.schedule import square_schedule
from frostline.systems.ti.infinity.text import CompactText


def test_prompts_and_negative_prompts_go_to_the_transformers_device(monkeypatch):
    asked = []

    def generate(model, quantizer, text, schedule, *, sampling, negative, generator):
        asked.append((text.features.device.type, negative.features.device.type, sampling.top_k))
        return SimpleNamespace(features=torch.zeros(text.num_prompts, 1))

    monkeypatch.setattr(drawing, "generate", generate)
    monkeypatch.setattr(drawing, "autocast", lambda *arguments: nullcontext())
    model = SimpleNamespace(schedule=square_schedule(1, 2), quantizer=None)
    transformer = SimpleNamespace(pos_start=torch.empty(1, device="meta"))
    tokenizer = SimpleNamespace(model=SimpleNamespace(decode=lambda features: torch.ones(len(features), 3, 4, 4) * 2))
    painter = Painter(model, transformer, tokenizer, sampling=SamplingConfig(top_k=1))
    text = CompactText(torch.zeros(5, 4), (3, 2))
    pictures = painter.draw(text, seed=0, negative=text)
    assert asked == [("meta", "meta", 1)]
    assert torch.equal(pictures, torch.ones(2, 3, 4, 4)), "cut to [-1, 1]"
