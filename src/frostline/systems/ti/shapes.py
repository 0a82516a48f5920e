"""The training step from shapes alone: no weights, no pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, T5EncoderModel

from frostline.errors import ConfigError
from frostline.memory import Workload
from frostline.systems.ti.batches import Batch, draw_example, open_sources
from frostline.systems.ti.concept import Concept
from frostline.systems.ti.config import TiConfig
from frostline.systems.ti.image_model import find_image_model, shapes_of
from frostline.systems.ti.infinity.sizes import TRANSFORMERS
from frostline.systems.ti.infinity.text import CompactText
from frostline.systems.ti.infinity.transformer import Infinity
from frostline.systems.ti.infinity.treatment import Treatment, treat_
from frostline.systems.ti.model import TiModel
from frostline.systems.ti.phase import concept_phase, concept_slots, training_step
from frostline.systems.ti.prompts import Prompt, Span, substitute
from frostline.systems.ti.scratch import make_scratch
from frostline.systems.ti.system import check_config
from frostline.systems.ti.text_encoder import TextEncoder

_TEXT_TOKENS = 20  # of a prompt, where there is no tokenizer to count them


class Blueprint:
    """A configuration's models and step, of any tensors: fake ones too.

    Args:
        config: The whole configuration; `system.model` may also be the name of a published transformer.

    Raises:
        ConfigError: A value that cannot be used.
    """

    def __init__(self, config: TiConfig) -> None:
        check_config(config)
        self.config = config
        self.transformer, self.schedule = shapes_of(config.system)
        self._is_inside = config.system.concept.space == "t5-input"
        self._prompts = self._find_prompts()
        self._scratch = make_scratch(self)
        if self._is_inside and config.system.model in TRANSFORMERS:
            raise ConfigError(
                "the shapes of the text encoder are not known",
                do="name a directory, or take --system.concept.space t5-output",
            )

    def build_model(self) -> nn.Module:
        """The frozen models that a step holds, with initial values."""
        parts: dict[str, nn.Module] = {"transformer": Infinity(self.transformer)}
        if self._is_inside:
            name = find_image_model(self.config.system).text_encoder_name
            parts["text_encoder"] = T5EncoderModel(AutoConfig.from_pretrained(name))
        return nn.ModuleDict(parts)

    def build_step(self, parts: Any, treatment: Treatment | None = None) -> Workload:
        """A training step of them on random numbers.

        Args:
            parts: From `build_model`.
            treatment: Of the transformer.
        """
        config, settings = self.config, self.config.system.concept
        transformer, encoder = parts["transformer"], parts["text_encoder"] if self._is_inside else None
        device = transformer.pos_start.device
        concepts = [
            Concept(
                name,
                torch.randn(settings.num_vectors, self.transformer.text_width, device=device),
                carrier="thing",
                space=settings.space,
            )
            for name in settings.placeholder
        ]
        model = TiModel(transformer, concepts, encoder)
        reader = _Reader(self._prompts, encoder, self.transformer.text_width, device)
        phase = concept_phase(model, reader, config, self.schedule, device, warn=False)
        if treatment is not None:
            place = self._scratch
            treat_(
                transformer,
                treatment,
                weight_file=place / "weights.safetensors",
                folder=place if config.memory.offload == "disk" or device.type == "cpu" else None,
            )
        num, bits = len(self._prompts), self.transformer.token_bits
        batch = Batch(
            torch.randint(2, (num, self.schedule.num_tokens, bits), dtype=torch.uint8, device=device),
            torch.randn(num, self.schedule.num_tokens - 1, bits, device=device),
            torch.arange(num),
        )
        return training_step(model, phase, [batch])

    def _find_prompts(self) -> tuple[Prompt, ...]:
        """The prompts of a micro-batch, whose lengths matter."""
        config, settings = self.config, self.config.system.concept
        num = max(1, config.training.batch_size // config.training.gradient_accumulation_steps)
        if config.system.model in TRANSFORMERS:
            names = (settings.placeholder[number % len(settings.placeholder)] for number in range(num))
            spans = (Span(name, 1, settings.num_vectors, settings.space) for name in names)
            return tuple(Prompt("", (0,) * _TEXT_TOKENS, (span,)) for span in spans)
        model = find_image_model(config.system)
        encoder, sources = model.load_text_encoder(), open_sources(config, model.image_size)
        slots = concept_slots(config)
        drawn = [draw_example(sources, number, config.training.seed) for number in range(num)]
        return tuple(encoder.rewrite(sources[concept].prompts[draw.prompt], slots) for concept, draw in drawn)


class _Reader:
    """Features of prompts from random numbers, or from a text encoder that is part of the step."""

    def __init__(self, prompts: Sequence[Prompt], encoder: nn.Module | None, width: int, device: torch.device) -> None:
        self._prompts, self._width, self._device = prompts, width, device
        self._encoder = encoder and TextEncoder(None, lambda: encoder, width=width, identity="")
        lengths = tuple(len(prompt.ids) for prompt in prompts)
        self._text = CompactText(torch.randn(sum(lengths), width, device=device), lengths)

    def fetch(self, numbers: Sequence[int], concepts: Sequence[Concept]) -> CompactText:
        """All prompts, whatever is asked for."""
        text = self._encoder.encode_through(self._prompts, concepts) if self._encoder else self._text
        return substitute(text, self._prompts, concepts)
