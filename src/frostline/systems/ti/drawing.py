"""Pictures of prompts, from frozen parts and concepts, and sheets of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from frostline.errors import ConfigError
from frostline.systems.ti.config import SamplingConfig
from frostline.systems.ti.image_model import ImageModel, LazyTokenizer
from frostline.systems.ti.infinity.generation import Sampling, generate
from frostline.systems.ti.infinity.text import CompactText
from frostline.systems.ti.infinity.transformer import Infinity
from frostline.training import Precision, autocast

_MAX_TOKENS = 8192  # of one call, so that a sheet of large pictures needs no more memory than one of them
_GAP = 2


class Painter:
    """Draws pictures of prompts.

    Args:
        image_model: Schedule and sizes.
        transformer: Draws bits.
        tokenizer: Makes pictures of them.
        sampling: How bits are drawn.
        precision: Autocast type.
    """

    def __init__(
        self,
        image_model: ImageModel,
        transformer: Infinity,
        tokenizer: LazyTokenizer,
        *,
        sampling: SamplingConfig,
        precision: Precision = "32-true",
    ) -> None:
        self._image_model, self._transformer, self._tokenizer = image_model, transformer, tokenizer
        self._precision, self._sampling = precision, configured_sampling(sampling)

    @torch.no_grad()
    def draw(self, text: CompactText, *, seed: int, negative: CompactText | None = None) -> Tensor:
        """One picture for each prompt, float32 (N, 3, H, W) in [-1, 1], on the host.

        Args:
            text: Features of N prompts.
            seed: Of the drawn bits.
            negative: What guidance leads away from: one prompt.
        """
        model, device = self._image_model, self._transformer.pos_start.device
        size, rows = max(1, _MAX_TOKENS // model.schedule.num_tokens), text.split()
        chance = torch.Generator().manual_seed(seed)
        pictures = []
        for start in range(0, len(rows), size):
            block = CompactText.join(rows[start : start + size]).to(device)
            with autocast(self._precision, device):
                drawn = generate(
                    self._transformer,
                    model.quantizer,
                    block,
                    model.schedule,
                    sampling=self._sampling,
                    negative=negative and negative.to(device),
                    generator=chance,
                )
            pictures += [self._tokenizer.model.decode(feature[None]).clamp(-1, 1).cpu() for feature in drawn.features]
        return torch.cat(pictures)


def configured_sampling(settings: SamplingConfig) -> Sampling:
    """How the configuration draws bits.

    Raises:
        ConfigError: A value that cannot be used.
    """
    return Sampling(
        guidance=settings.guidance, temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p
    )


def sheet(rows: Sequence[Tensor]) -> Tensor:
    """Rows of pictures (N, 3, H, W) in [-1, 1], each as long as it is, under each other: uint8 (H', W', 3), on grey."""
    height, width = rows[0].shape[-2:]
    columns = max(len(row) for row in rows)
    down, across = height + _GAP, width + _GAP
    canvas = torch.full((len(rows) * down - _GAP, columns * across - _GAP, 3), 96, dtype=torch.uint8)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            pixels = ((picture.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
            canvas[y * down : y * down + height, x * across : x * across + width] = pixels
    return canvas


def write_picture(picture: Tensor, path: Path, *, least_side: int = 0) -> None:
    """A uint8 picture (H, W, 3) as a file of its suffix's format.

    Args:
        picture: The pixels.
        path: Its folder is made.
        least_side: Small pictures are enlarged by a whole number until a side has about so many pixels.

    Raises:
        ConfigError: The file cannot be written, or its suffix names no format.
    """
    times = max(1, round(least_side / max(picture.shape[:2])))
    image = Image.fromarray(picture.repeat_interleave(times, 0).repeat_interleave(times, 1).numpy())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the picture cannot be written: {error}", where=str(path), do="name it like out.png"
        ) from None
