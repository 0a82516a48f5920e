"""From pictures to batches: bits to predict, what the model sees of the coarser scales, and each picture's prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from frostline.errors import ConfigError
from frostline.ops import FeatureCache, cache_key
from frostline.scenes import THING_WORD, Things, render_things
from frostline.systems.ti.config import TiConfig, TiDataConfig
from frostline.systems.ti.image_model import ImageModel, LazyTokenizer
from frostline.systems.ti.infinity.quantizer import MultiScaleBSQ
from frostline.systems.ti.infinity.schedule import Schedule
from frostline.systems.ti.pictures import TEMPLATES, Draw, Examples, Pictures, fill_templates
from frostline.training import Sample

Progress = Callable[[int, int], None]
"""Told how many of how many are done."""


class ThingPictures(Examples):
    """Drawn pictures of one thing, with captions that name colour and background, or with templates.

    Args:
        shape: Which thing.
        num_pictures: How many.
        placeholder: Its name in prompts.
        size: Height and width in pixels.
        seed: Another seed is another data set.
        templates: Instead of captions.

    Attributes:
        shape: As given.
        things: The pictures, with what they show.
    """

    def __init__(
        self,
        shape: str,
        num_pictures: int,
        *,
        placeholder: str,
        size: tuple[int, int],
        seed: int,
        templates: Sequence[str] = (),
    ) -> None:
        if size[0] != size[1]:
            raise ConfigError(f"things are drawn on squares, not on {size[0]} x {size[1]} pixels", do="take folders")
        self.shape = shape
        self.things: Things = render_things(
            range(num_pictures), split="train", seed=seed, size=size[0], shapes=(shape,)
        )
        described = _as_named(self.things.captions(THING_WORD), shape, placeholder)
        super().__init__(fill_templates(templates, placeholder) or described, own_caption=not templates)

    def __len__(self) -> int:
        return len(self.things.images)

    def pixels(self, picture: int, *, flipped: bool = False) -> Tensor:
        """One picture, float32 (3, H, W) in [-1, 1]."""
        pixels = self.things.images[picture].float() / 127.5 - 1
        return pixels.flip(2) if flipped else pixels


def open_sources(config: TiConfig, size: tuple[int, int]) -> tuple[Examples, ...]:
    """The pictures of each concept, in the order of the placeholders.

    Args:
        config: Of the run.
        size: Height and width of a picture in pixels.

    Raises:
        ConfigError: Not as many concepts or folders as placeholders, or an unknown thing.
        DataError: A folder that cannot be used.
    """
    data, placeholders = config.data, config.system.concept.placeholder
    given = data.concept if data.kind == "things" else data.path
    if len(given) != len(placeholders):
        key = "--data.concept" if data.kind == "things" else "--data.path"
        raise ConfigError(
            f"{len(given)} of {key} for {len(placeholders)} placeholders ({', '.join(placeholders)})",
            do=f"give as many of {key} as of --system.concept.placeholder",
        )
    return tuple(
        _open(data, what, placeholder, size, config.training.seed)
        for what, placeholder in zip(given, placeholders, strict=True)
    )


class Latents:
    """Raw features of every picture, each computed once; then the tokenizer can go.

    Args:
        sources: Of pictures.
        model: Says how large features are.
        tokenizer: Asked for those that are missing.
        directory: Where the file goes; None keeps the features in host memory.
    """

    def __init__(
        self,
        sources: Sequence[Examples],
        model: ImageModel,
        tokenizer: LazyTokenizer,
        *,
        directory: Path | None = None,
    ) -> None:
        self._sources, self._tokenizer = tuple(sources), tokenizer
        self._variants = [
            (number, *variant) for number, source in enumerate(self._sources) for variant in source.variants
        ]
        self._rows = {variant: row for row, variant in enumerate(self._variants)}
        key = "" if directory is None else cache_key(model.tokenizer_identity, *map(self._pixels, self._variants))
        self._cache = FeatureCache(
            len(self._variants),
            (model.tokenizer_config.code_bits, *model.grid),
            dtype=torch.float32,
            key=key,
            path=None if directory is None else directory / f"latents-{key[:12]}.safetensors",
        )

    def __len__(self) -> int:
        return len(self._variants)

    @property
    def nbytes(self) -> int:
        """What the cache takes."""
        return self._cache.nbytes

    def fetch(self, concept: int, picture: int, flipped: bool) -> Tensor:
        """Features (code bits, h, w) of one picture, in host memory."""
        row = self._rows[concept, picture, flipped]
        return self._cache.fetch(torch.tensor([row]), lambda _: self._encode(self._variants[row])[None])[0]

    def fill_(self, progress: Progress) -> None:
        """Encode every picture that is missing, one at a time."""
        for number, variant in enumerate(self._variants):
            self.fetch(*variant)
            progress(number + 1, len(self._variants))

    def _pixels(self, variant: tuple[int, int, bool]) -> Tensor:
        source, picture, flipped = variant
        return self._sources[source].pixels(picture, flipped=flipped)

    @torch.no_grad()
    def _encode(self, variant: tuple[int, int, bool]) -> Tensor:
        tokenizer = self._tokenizer.model
        pixels = self._pixels(variant)[None].to(next(tokenizer.parameters()).device)
        with torch.autocast(pixels.device.type, enabled=False):
            return tokenizer.encode(pixels)[0].float()


@dataclass(frozen=True)
class Batch:
    """B pictures as bits, with their prompts.

    Attributes:
        bits: What is to be predicted, uint8 (B, L, D).
        inputs: What the model sees of the coarser scales, some of its bits turned, (B, L - 1, D).
        prompts: Numbers of the prompts, int64 (B,), on the host.
    """

    bits: Tensor
    inputs: Tensor
    prompts: Tensor

    def __len__(self) -> int:
        return len(self.bits)

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """The same batch on a device."""
        return dataclasses.replace(
            self,
            bits=self.bits.to(device, non_blocking=non_blocking),
            inputs=self.inputs.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory."""
        return dataclasses.replace(self, bits=self.bits.pin_memory(), inputs=self.inputs.pin_memory())


class TiDataset:
    """Endless examples: row i of epoch e is example e x `num_rows` + i, whoever asks for it.

    Concepts take turns. Everything random about an example is a function of its number and the seed.

    Args:
        sources: Pictures of each concept.
        latents: Their features.
        quantizer: Makes bits of them.
        schedule: Of tokens.
        bit_flips: See `MultiScaleBSQ.encode`.
        seed: Of what is random.
        num_rows: A step's examples: a step is an epoch.
    """

    def __init__(
        self,
        sources: Sequence[Examples],
        latents: Latents,
        quantizer: MultiScaleBSQ,
        schedule: Schedule,
        *,
        bit_flips: float,
        seed: int,
        num_rows: int,
    ) -> None:
        self._sources, self._latents = tuple(sources), latents
        self._quantizer, self._schedule, self._bit_flips = quantizer, schedule, bit_flips
        self._seed, self._num_rows = seed, num_rows
        self._first_prompts = np.cumsum([0, *(len(source.prompts) for source in sources)]).tolist()

    def __len__(self) -> int:
        return self._num_rows

    def __getitems__(self, samples: Sequence[Sample]) -> list[Batch]:
        """Batches of one."""
        return [self._example(sample.epoch * self._num_rows + sample.index) for sample in samples]

    def _example(self, number: int) -> Batch:
        concept, drawn = draw_example(self._sources, number, self._seed)
        chance = np.random.default_rng((self._seed % 2**64, 2, number))
        codes = self._quantizer.encode(
            self._latents.fetch(concept, drawn.picture, drawn.flipped)[None],
            self._schedule,
            flip=self._bit_flips,
            generator=torch.Generator().manual_seed(int(chance.integers(2**63))),
        )
        prompt = self._first_prompts[concept] + drawn.prompt
        return Batch(codes.bits, codes.inputs, torch.tensor([prompt]))


def draw_example(sources: Sequence[Examples], number: int, seed: int) -> tuple[int, Draw]:
    """Which concept's turn it is in an example, and what it is made of."""
    turn, concept = divmod(number, len(sources))
    return concept, sources[concept].draw(turn, seed=seed + concept)


def collate(examples: Sequence[Batch]) -> Batch:
    """Batches of one to a batch of all."""
    parts = zip(*((each.bits, each.inputs, each.prompts) for each in examples), strict=True)
    return Batch(*(torch.cat(part) for part in parts))


def _open(data: TiDataConfig, what: str, placeholder: str, size: tuple[int, int], seed: int) -> Examples:
    templates = data.templates
    if data.kind == "things":
        chosen = templates or (() if data.captions in ("auto", "described") else TEMPLATES[data.captions])
        return ThingPictures(what, data.num_pictures, placeholder=placeholder, size=size, seed=seed, templates=chosen)
    folder = Path(what).expanduser()
    captions = data.captions
    if captions == "auto":
        captions = "described" if folder.is_dir() and any(folder.glob("*.txt")) and not templates else "object"
    return Pictures(
        folder,
        placeholder=placeholder,
        size=size,
        captions="files" if captions == "described" else captions,
        templates=templates,
        flip=data.flip,
    )


def _as_named(captions: Sequence[str], shape: str, placeholder: str) -> list[str]:
    """Captions in which the placeholder stands for the thing, whether or not it has a name."""
    return [
        " ".join(placeholder if word in (THING_WORD, shape) else word for word in caption.split())
        for caption in captions
    ]
