"""Where samples come from: rooms that are drawn, or pictures in numbered files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from frostline.errors import DataError
from frostline.scenes import RGBD_CLASSES, Split, render_rgbd
from frostline.systems.linet.network import Statistics

STREAMS = ("colour", "depth")
CHANNELS = (3, 1)
_BLOCK = 256
PHOTOGRAPH_STATS: tuple[Statistics, ...] = (((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), (0.35, 0.2))

Read = tuple[tuple[Tensor, ...], Tensor, Tensor]
"""uint8 images ``(B, C_i, S, S)`` of each stream, labels ``(B,)``, availability ``(B, N)``."""
Progress = Callable[[int, int], None]


class Source(Protocol):
    """Samples by number.

    Attributes:
        classes: Their names.
        norm_stats: Mean and standard deviation of each stream's values in 0..1.
        num_samples: How many.
    """

    classes: tuple[str, ...]
    norm_stats: tuple[Statistics, ...]
    num_samples: int

    def read(self, indices: Sequence[int]) -> Read:
        """Samples; the images of missing streams are zeros."""
        ...

    def prepare(self, progress: Progress) -> None:
        """Do what is done once."""
        ...


class SceneSource:
    """Procedural rooms, each drawn once and kept.

    Args:
        split: Which rooms.
        num_scenes: How many.
        seed: Another seed is another data set.
        size: Height and width in pixels.
        shading: How much of the shape the colour camera sees.
    """

    classes = RGBD_CLASSES
    norm_stats: tuple[Statistics, ...] = ((0.41, 0.22), (0.65, 0.25))

    def __init__(self, *, split: Split, num_scenes: int, seed: int, size: int, shading: float = 0.0) -> None:
        self.num_samples = num_scenes
        self._split, self._seed, self._size, self._shading = split, seed, size, shading
        self._images = tuple(torch.zeros(num_scenes, num, size, size, dtype=torch.uint8) for num in CHANNELS)
        self._labels = torch.full((num_scenes,), -1)

    def read(self, indices: Sequence[int]) -> Read:
        """Rooms, drawn if they have not been yet."""
        rows = torch.as_tensor(indices, dtype=torch.long)
        new = rows[self._labels[rows] < 0].unique()
        if len(new):
            *images, labels = render_rgbd(
                new.tolist(), split=self._split, seed=self._seed, size=self._size, shading=self._shading
            )
            for kept, drawn in zip(self._images, images, strict=True):
                kept[new] = drawn
            self._labels[new] = labels
        everything = torch.ones(len(rows), len(STREAMS), dtype=torch.bool)
        return tuple(images[rows] for images in self._images), self._labels[rows], everything

    def prepare(self, progress: Progress) -> None:
        """Draw all rooms, so that loader processes need not."""
        for start in range(0, self.num_samples, _BLOCK):
            end = min(start + _BLOCK, self.num_samples)
            self.read(range(start, end))
            progress(end, self.num_samples)


@dataclass(frozen=True)
class Entry:
    """One sample on disk.

    Attributes:
        colour: The file; None if it is missing.
        depth: Likewise.
        label: Index of its class.
    """

    colour: Path | None
    depth: Path | None
    label: int


class FileSource:
    """Pairs of pictures, read when they are asked for.

    Args:
        entries: Each with one picture or two.
        classes: Names.
        size: Height and width that pictures are brought to, in pixels.
        decode_depth: A picture's values as they are in the file, to uint8; 0 is what the camera could not see.

    Raises:
        DataError: There is no sample.
    """

    norm_stats = PHOTOGRAPH_STATS

    def __init__(
        self,
        entries: Sequence[Entry],
        classes: Sequence[str],
        *,
        size: int,
        decode_depth: Callable[[np.ndarray], np.ndarray],
        where: str = "",
    ) -> None:
        if not entries:
            raise DataError("the data set is empty", where=where, do="check --data.directory")
        self.classes, self.num_samples = tuple(classes), len(entries)
        self._entries, self._size, self._decode = tuple(entries), size, decode_depth

    def read(self, indices: Sequence[int]) -> Read:
        """Samples; their pictures are squeezed to squares, colour smoothly, depth by the nearest pixel.

        Raises:
            DataError: A picture cannot be read.
        """
        entries = [self._entries[index] for index in indices]
        colour = [self._colour(entry.colour) for entry in entries]
        depth = [self._depth(entry.depth) for entry in entries]
        labels = torch.tensor([entry.label for entry in entries], dtype=torch.long)
        there = [[entry.colour is not None, entry.depth is not None] for entry in entries]
        availability = torch.tensor(there, dtype=torch.bool).view(len(entries), len(STREAMS))
        return (self._stacked(colour, 3), self._stacked(depth, 1)), labels, availability

    def prepare(self, progress: Progress) -> None:
        """Nothing."""

    def _stacked(self, pictures: list[np.ndarray | None], channels: int) -> Tensor:
        empty = np.zeros((channels, self._size, self._size), np.uint8)
        whole = np.array([empty if picture is None else picture for picture in pictures], np.uint8)
        return torch.from_numpy(whole.reshape(-1, *empty.shape))

    def _colour(self, file: Path | None) -> np.ndarray | None:
        if file is None:
            return None
        return colour_array(open_picture(file).convert("RGB"), self._size)

    def _depth(self, file: Path | None) -> np.ndarray | None:
        if file is None:
            return None
        values = np.asarray(open_picture(file))
        if values.ndim != 2:
            raise DataError(f"a depth picture has shape {values.shape}", where=str(file), do="give one channel")
        return depth_array(self._decode(values), self._size)


def colour_array(picture: Image.Image, size: int) -> np.ndarray:
    """A picture as uint8 ``(3, S, S)``."""
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=2.0)).transpose(2, 0, 1)


def depth_array(values: np.ndarray, size: int) -> np.ndarray:
    """Depth ``(H, W)`` as uint8 ``(1, S, S)``: the nearest pixels, for the mean of a hole and a wall is neither."""
    rows, columns = ((np.arange(size) + 0.5) * num / size for num in values.shape)
    chosen: np.ndarray = values[rows.astype(int)[:, None], columns.astype(int)]
    return chosen.astype(np.uint8)[None]


def open_picture(file: Path) -> Image.Image:
    """A picture, read.

    Raises:
        DataError: It cannot be.
    """
    try:
        with Image.open(file) as picture:
            picture.load()
            return picture.copy()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"the picture cannot be read: {error}", where=str(file), do="replace or remove it") from None
