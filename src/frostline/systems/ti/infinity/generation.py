"""Pictures from text, scale by scale, with classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from frostline.errors import ConfigError
from frostline.systems.ti.infinity.attention import KeyValueCache
from frostline.systems.ti.infinity.quantizer import MultiScaleBSQ
from frostline.systems.ti.infinity.rope import rotations
from frostline.systems.ti.infinity.schedule import Schedule
from frostline.systems.ti.infinity.text import CompactText
from frostline.systems.ti.infinity.transformer import Infinity


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How bits are drawn.

    Attributes:
        guidance: g in g x text + (1 - g) x null; 1 is the text alone. One value, or one for each scale.
        guidance_layer: None mixes logits; a number mixes what this block gives, -1 being the last (published: -5).
        temperature: Logits are divided by it. One value, or one for each scale.
        top_k: A bit has two values: 1 takes the likelier one, 0 and 2 draw.
        top_p: The less likely value is left out where its probability is at most 1 - `top_p`; 0 leaves none out.
    """

    guidance: float | Sequence[float] = 3.0
    guidance_layer: int | None = None
    temperature: float | Sequence[float] = 1.0
    top_k: int = 0
    top_p: float = 0.0

    def __post_init__(self) -> None:
        if self.top_k < 0 or not 0 <= self.top_p <= 1:
            raise ConfigError(f"top_k is {self.top_k} and top_p {self.top_p}", do="give 0 or more, and 0 to 1")
        temperatures = [self.temperature] if isinstance(self.temperature, int | float) else self.temperature
        if any(value <= 0 for value in temperatures):
            raise ConfigError(f"temperature is {self.temperature}", do="give more than 0, or top_k=1 for no chance")


@dataclass(frozen=True)
class Generated:
    """A batch of pictures as bits.

    Attributes:
        bits: 0 or 1, uint8 of shape (B, L, D).
        features: What they stand for, shape (B, code bits, height, width), for `ImageTokenizer.decode`.
    """

    bits: Tensor
    features: Tensor


class Rollout:
    """Prompts being drawn: each step gives one scale's logits and remembers its keys and values.

    Args:
        model: The transformer.
        text: Features of B prompts.
        schedule: Of all scales.

    Raises:
        ConfigError: The model has no levels for the schedule.
    """

    def __init__(self, model: Infinity, text: CompactText, schedule: Schedule) -> None:
        model.check_schedule(schedule)
        self._model, self._schedule, self._scale = model, schedule, 0
        self._condition = model.condition(text)
        self._turns = rotations(schedule, model.config.head_width, device=text.features.device)
        self._caches = [KeyValueCache() for _ in model.all_blocks]

    def step(self, inputs: Tensor | None, *, between: Callable[[int, Tensor], Tensor] | None = None) -> Tensor:
        """The next scale's logits.

        Args:
            inputs: What is known of the coarser scales, shape (B, n, D); None for the first scale.
            between: Called with each block's number and output (B, n, C); returns what goes on instead.

        Returns:
            Shape (B, n, D, 2).
        """
        model, schedule, scale = self._model, self._schedule, self._scale
        tokens = model.embed(self._condition, inputs, schedule, scale=scale)
        turns = self._turns[schedule.spans[scale]]
        for number, block in enumerate(model.all_blocks):
            ends = (schedule.lengths[scale],)
            tokens = model.run_block(block, tokens, self._condition, turns, ends, self._caches[number])
            tokens = tokens if between is None else between(number, tokens)
        self._scale += 1
        return model.logits(tokens, self._condition.pooled)


@torch.no_grad()
def generate(
    model: Infinity,
    quantizer: MultiScaleBSQ,
    text: CompactText,
    schedule: Schedule,
    *,
    sampling: Sampling | None = None,
    negative: CompactText | None = None,
    generator: torch.Generator | None = None,
) -> Generated:
    """Draw one picture for each prompt.

    Autocast is the caller's. Bits are drawn on the CPU, so a seed means the same on every device as far as the
    logits do; it does not mean what it means in the published code, which draws in another order.

    Args:
        model: The transformer.
        quantizer: Of its tokenizer.
        text: Features of B prompts.
        schedule: Of tokens.
        sampling: How; the defaults where None.
        negative: What guidance leads away from, B prompts or one for all; the model's null prompt where None.
        generator: Draws the bits, on the CPU.

    Raises:
        ConfigError: Sampling, negative prompts and model do not belong together.
    """
    sampling = sampling or Sampling()
    guidance = _per_scale(sampling.guidance, schedule, "guidance")
    temperature = _per_scale(sampling.temperature, schedule, "temperature")
    layer = _layer(sampling.guidance_layer, model)
    num = text.num_prompts
    is_guided = any(strength != 1 for strength in guidance)
    if is_guided:
        text = text.followed_by(_negative(model, text, negative))
    rollout = Rollout(model, text, schedule)
    total: Tensor | None = None
    bits: list[Tensor] = []
    for scale, strength in enumerate(guidance):
        inputs = None if total is None else quantizer.next_input(total, schedule, scale)
        if inputs is not None and is_guided:
            inputs = inputs.repeat(2, 1, 1)
        at_layer = strength != 1 and layer is not None
        logits = rollout.step(inputs, between=_mixer(layer, strength, num) if at_layer else None).float()
        mixes = strength != 1 and not at_layer
        logits = strength * logits[:num] + (1 - strength) * logits[num:] if mixes else logits[:num]
        bits.append(_draw(logits / temperature[scale], sampling, generator))
        total = quantizer.add(total, bits[-1], schedule, scale)
    assert total is not None
    return Generated(torch.cat(bits, 1), total)


def _draw(logits: Tensor, sampling: Sampling, generator: torch.Generator | None) -> Tensor:
    ones = logits.softmax(-1)[..., 1].cpu()
    likelier = (ones > 0.5).to(ones.dtype)
    if sampling.top_k == 1:
        ones = likelier
    if sampling.top_p > 0:
        ones = torch.where(torch.minimum(ones, 1 - ones) <= 1 - sampling.top_p, likelier, ones)
    drawn = torch.rand(ones.shape, generator=generator) < ones
    return drawn.to(logits.device, torch.uint8)


def _mixer(layer: int | None, strength: float, num: int) -> Callable[[int, Tensor], Tensor]:
    def mix(number: int, tokens: Tensor) -> Tensor:
        if number != layer:
            return tokens
        return (strength * tokens[:num] + (1 - strength) * tokens[num:]).repeat(2, 1, 1)

    return mix


def _negative(model: Infinity, text: CompactText, negative: CompactText | None) -> CompactText:
    if negative is None:
        return model.null_text(text.lengths)
    if negative.num_prompts == 1:
        return CompactText.join(list(negative.split()) * text.num_prompts)
    if negative.num_prompts != text.num_prompts:
        raise ConfigError(
            f"{negative.num_prompts} negative prompts for {text.num_prompts} prompts", do="give one, or one for each"
        )
    return negative


def _per_scale(value: float | Sequence[float], schedule: Schedule, name: str) -> list[float]:
    if isinstance(value, int | float):
        return [float(value)] * schedule.num_scales
    if len(value) != schedule.num_scales:
        raise ConfigError(f"{len(value)} values of {name} for {schedule.num_scales} scales", do="give one for each")
    return [float(entry) for entry in value]


def _layer(layer: int | None, model: Infinity) -> int | None:
    depth = model.config.depth
    if layer is None:
        return None
    if not -depth <= layer < depth:
        raise ConfigError(f"guidance_layer is {layer}", do=f"give a block, {-depth} to {depth - 1}, or None")
    return layer % depth
