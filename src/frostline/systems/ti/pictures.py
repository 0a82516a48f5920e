"""A folder of a few pictures with captions, drawn for ever in an order that the seed alone decides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from frostline.errors import ConfigError, DataError

TEMPLATES: dict[str, tuple[str, ...]] = {
    "object": (
        "a photo of a {}",
        "a close photo of a {}",
        "a bright photo of a {}",
        "a dark photo of a {}",
        "a cropped photo of a {}",
        "a good photo of a {}",
        "a photo of one {}",
        "a photo of the {}",
        "a rendering of a {}",
        "a picture of a {}",
    ),
    "style": (
        "a painting in the style of {}",
        "a rendering in the style of {}",
        "a picture in the style of {}",
        "a close painting in the style of {}",
        "a bright painting in the style of {}",
        "a dark painting in the style of {}",
        "a small painting in the style of {}",
        "a large painting in the style of {}",
    ),
}
"""Prompts for a thing and for a manner, as in textual inversion (Gal et al. 2022)."""

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Draw:
    """What one training example is made of.

    Attributes:
        picture: Its number in the folder.
        flipped: Whether it is mirrored.
        prompt: The prompt's number in `Pictures.prompts`.
    """

    picture: int
    flipped: bool
    prompt: int


class Examples(ABC):
    """Pictures and the prompts they are shown with.

    There are no epochs to fall short of: `draw` answers for any number, so neither batch size nor workers can be too
    many for a few pictures.

    Args:
        prompts: All that can be drawn.
        own_caption: Whether each picture has its own of them, by its number; otherwise any prompt fits any picture.
        flip: Whether pictures are mirrored at random.

    Attributes:
        prompts: As given.
    """

    def __init__(self, prompts: Sequence[str], *, own_caption: bool, flip: bool = False) -> None:
        self.prompts, self._own_caption, self._flip = tuple(prompts), own_caption, flip

    @abstractmethod
    def __len__(self) -> int:
        """How many pictures."""

    @abstractmethod
    def pixels(self, picture: int, *, flipped: bool = False) -> Tensor:
        """One picture, float32 (3, H, W) in [-1, 1]."""

    @property
    def variants(self) -> tuple[tuple[int, bool], ...]:
        """Every picture as it can be drawn, mirrored or not: what features are cached of."""
        mirrored = (False, True) if self._flip else (False,)
        return tuple((number, flipped) for flipped in mirrored for number in range(len(self)))

    def draw(self, number: int, *, seed: int) -> Draw:
        """Example `number` of an endless sequence: a function of the two alone, whoever asks.

        Every run of as many examples as there are pictures has each picture once.
        """
        block, place = divmod(number, len(self))
        picture = int(np.random.default_rng((seed % 2**64, 0, block)).permutation(len(self))[place])
        chance = np.random.default_rng((seed % 2**64, 1, number))
        flipped = bool(chance.integers(2)) and self._flip
        prompt = picture if self._own_caption else int(chance.integers(len(self.prompts)))
        return Draw(picture, flipped, prompt)

    def draws(self, *, seed: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Draw]:
        """One process's share of the sequence, from example `start` on, without end."""
        number = start + rank
        while True:
            yield self.draw(number, seed=seed)
            number += world_size


class Pictures(Examples):
    """A folder's pictures of a concept, each with a caption or with templates; three to twenty are usual.

    Args:
        folder: Of png, jpg, webp or bmp files, in the order of their names.
        placeholder: Must be in every caption; takes the place of ``{}`` in templates.
        size: Height and width that pictures are brought to, in pixels.
        captions: ``files``: a text beside each picture, ``cat.txt`` beside ``cat.png``. Otherwise templates.
        templates: Instead of ours.
        flip: Whether pictures are mirrored at random: not for what has a left and a right.

    Attributes:
        files: The pictures.

    Raises:
        DataError: No pictures, a caption is missing, or one without the placeholder.
        ConfigError: Templates without ``{}``.
    """

    def __init__(
        self,
        folder: Path,
        *,
        placeholder: str,
        size: tuple[int, int],
        captions: Literal["object", "style", "files"] = "object",
        templates: Sequence[str] = (),
        flip: bool = False,
    ) -> None:
        self.files, self._size = _files(folder), size
        own = captions == "files"
        prompts = (
            [_caption(file, placeholder) for file in self.files]
            if own
            else fill_templates(templates or TEMPLATES[captions], placeholder)
        )
        super().__init__(prompts, own_caption=own, flip=flip)

    def __len__(self) -> int:
        return len(self.files)

    def pixels(self, picture: int, *, flipped: bool = False) -> Tensor:
        """One picture, float32 (3, H, W) in [-1, 1]: resized to cover the size, its centre cut out.

        Raises:
            DataError: The file is no picture.
        """
        height, width = self._size
        try:
            with Image.open(self.files[picture]) as file:
                image = ImageOps.exif_transpose(file).convert("RGB")  # as the camera was held
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(
                f"the picture cannot be read: {error}", where=str(self.files[picture]), do="replace or remove it"
            ) from None
        scale = max(height / image.height, width / image.width)
        covering = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
        image = image.resize(covering, Image.Resampling.LANCZOS)
        left, top = (covering[0] - width) // 2, (covering[1] - height) // 2
        pixels = torch.from_numpy(np.array(image.crop((left, top, left + width, top + height)), dtype=np.float32))
        pixels = pixels.permute(2, 0, 1) / 127.5 - 1
        return (pixels.flip(2) if flipped else pixels).contiguous()


def fill_templates(templates: Sequence[str], placeholder: str) -> list[str]:
    """Prompts with the placeholder where templates have ``{}``.

    Raises:
        ConfigError: One has none.
    """
    bad = next((template for template in templates if "{}" not in template), None)
    if bad is not None:
        raise ConfigError(f"the template {bad!r} has no place for the concept", do="write {} into it")
    return [template.replace("{}", placeholder) for template in templates]


def _files(folder: Path) -> tuple[Path, ...]:
    if not folder.is_dir():
        raise DataError("the folder of pictures does not exist", where=str(folder), do="check the path")
    files = tuple(sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES))
    if not files:
        raise DataError("the folder has no pictures", where=str(folder), do=f"put {', '.join(_SUFFIXES)} files there")
    return files


def _caption(file: Path, placeholder: str) -> str:
    beside = file.with_suffix(".txt")
    try:
        caption = " ".join(beside.read_text(encoding="utf-8").split())
    except OSError as error:
        raise DataError(
            f"the caption cannot be read: {error.strerror}", where=str(beside), do="write one, or use templates"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"the caption is not UTF-8: {error.reason}", where=str(beside)) from None
    if placeholder not in caption:
        raise DataError(
            f"the caption {caption[:60]!r} has no {placeholder}: it cannot train it",
            where=str(beside),
            do=f"write {placeholder} where the concept's name would stand",
        )
    return caption
