"""Numbered files by split: ``train/rgb/00000.png``, ``train/depth/00000.png``, ``train/labels.txt``; or tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from frostline.errors import DataError
from frostline.systems.linet.network import Statistics
from frostline.systems.linet.sources import (
    CHANNELS,
    PHOTOGRAPH_STATS,
    STREAMS,
    Entry,
    FileSource,
    Progress,
    Read,
    Source,
)

_FOLDERS = {"train": ("train",), "test": ("test", "val")}
_SUFFIXES = (".png", ".jpg", ".jpeg")
_LAYOUT = (
    "expected train and test (or val), each with labels.txt and rgb and depth, or rgb_tensors.pt and depth_tensors.pt"
)


def open_folders(root: Path, *, split: str, size: int) -> Source:
    """A split in this layout.

    Pictures are named by the number of their line in ``labels.txt``, which holds a class's number a line. A picture
    that is not there is a missing stream. Depth of 16 bits is scaled by its whole range, depth of 8 bits kept. Names of
    classes may stand in ``classes.txt`` beside the splits. Where ``rgb_tensors.pt`` and ``depth_tensors.pt`` lie
    there, uint8 ``(S, 3, H, W)`` and ``(S, 1, H, W)``, they are taken instead.

    Args:
        root: Of the splits.
        split: ``train`` or ``test``; ``val`` is tested where there is no ``test``.
        size: Height and width that pictures are brought to.

    Raises:
        DataError: It is not in this layout.
    """
    folder = next((root / name for name in _FOLDERS[split] if (root / name).is_dir()), None)
    if folder is None:
        raise DataError(f"there is no split {split!r}", where=str(root), do=_LAYOUT)
    labels = _labels(folder / "labels.txt")
    classes = _classes(root / "classes.txt", labels)
    if (folder / "rgb_tensors.pt").is_file():
        return TensorSource(folder, labels, classes, size)
    entries = [
        Entry(_numbered(folder / "rgb", number), _numbered(folder / "depth", number), label)
        for number, label in enumerate(labels)
    ]
    lost = next((number for number, entry in enumerate(entries) if entry.colour is None and entry.depth is None), None)
    if lost is not None:
        raise DataError(f"sample {lost:05d} has neither a colour nor a depth picture", where=str(folder), do=_LAYOUT)
    return FileSource(entries, classes, size=size, decode_depth=_decoded, where=str(folder))


class TensorSource:
    """Pictures that lie in two tensor files.

    Args:
        folder: Of the files.
        labels: A class's number a sample.
        classes: Names.
        size: Height and width that pictures are brought to.

    Raises:
        DataError: A file cannot be read, or does not fit the labels.
    """

    norm_stats: tuple[Statistics, ...] = PHOTOGRAPH_STATS

    def __init__(self, folder: Path, labels: Sequence[int], classes: Sequence[str], size: int) -> None:
        self.classes, self.num_samples, self._size = tuple(classes), len(labels), size
        names = ("rgb_tensors.pt", "depth_tensors.pt")
        self._images = tuple(
            _tensor(folder / name, (len(labels), num)) for name, num in zip(names, CHANNELS, strict=True)
        )
        self._labels = torch.tensor(labels)

    def read(self, indices: Sequence[int]) -> Read:
        """Samples; nothing is missing."""
        rows = torch.as_tensor(indices, dtype=torch.long)
        colour, depth = (images[rows] for images in self._images)
        if colour.shape[-2:] != (self._size, self._size):
            colour = F.interpolate(colour.float(), (self._size, self._size), mode="bilinear", antialias=True)
        if depth.shape[-2:] != (self._size, self._size):
            depth = F.interpolate(depth.float(), (self._size, self._size), mode="nearest-exact")
        everything = torch.ones(len(rows), len(STREAMS), dtype=torch.bool)
        return (colour.round().to(torch.uint8), depth.to(torch.uint8)), self._labels[rows], everything

    def prepare(self, progress: Progress) -> None:
        """Nothing."""


def _labels(file: Path) -> list[int]:
    try:
        labels = [int(line) for line in file.read_text(encoding="utf-8").split()]
    except OSError as error:
        raise DataError(f"cannot read the labels: {error.strerror}", where=str(file), do=_LAYOUT) from None
    except ValueError as error:
        raise DataError(f"the labels are not numbers: {error}", where=str(file), do=_LAYOUT) from None
    if not labels or min(labels) < 0:
        raise DataError("there are no labels" if not labels else "a label is negative", where=str(file), do=_LAYOUT)
    return labels


def _classes(file: Path, labels: Sequence[int]) -> list[str]:
    names = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    if names and max(labels) >= len(names):
        raise DataError(f"label {max(labels)} has no name", where=str(file), do="write a name a line")
    return names or [f"class {number}" for number in range(max(labels) + 1)]


def _numbered(folder: Path, number: int) -> Path | None:
    files = (folder / f"{number:05d}{suffix}" for suffix in _SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def _decoded(values: np.ndarray) -> np.ndarray:
    return values if values.dtype == np.uint8 else np.clip(values.astype(np.float64) / 257, 0, 255).round()


def _tensor(file: Path, shape: tuple[int, int]) -> Tensor:
    try:
        images = torch.load(file, weights_only=True)
    except (OSError, RuntimeError, UnpicklingError, EOFError) as error:
        raise DataError(f"the tensor cannot be read: {error}", where=str(file), do=_LAYOUT) from None
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or tuple(images.shape[:2]) != shape:
        what = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise DataError(f"expected uint8 ({shape[0]}, {shape[1]}, H, W), got {what}", where=str(file))
    return images
