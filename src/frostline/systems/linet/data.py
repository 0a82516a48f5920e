"""From a source to batches: the same cut for all streams of a sample, and what training takes away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from frostline.errors import ConfigError, DataError
from frostline.systems.linet.availability import ModalityDropout, merge_availability
from frostline.systems.linet.batches import Batch
from frostline.systems.linet.config import LinetDataConfig
from frostline.systems.linet.folders import open_folders
from frostline.systems.linet.nyuv2 import open_nyuv2
from frostline.systems.linet.sources import SceneSource, Source
from frostline.systems.linet.sunrgbd import open_sunrgbd
from frostline.training import Sample

NUM_CLASSES = {"scenes": 9, "folders": 19, "sunrgbd": 19, "nyuv2": 10}
"""Where the data set is not looked at."""
_MARGIN = 8 / 7  # 256 pixels are kept for 224 that are seen
_FLIP_PROBABILITY = 0.5


@dataclass(frozen=True)
class Example:
    """One sample as the network will see it: uint8 images, label, availability ``(N,)``, and which it was."""

    streams: tuple[Tensor, ...]
    label: Tensor
    availability: Tensor
    sample: Sample


class LinetDataset:
    """Examples by sample.

    Cut and mirror come from (seed, epoch, index), so it does not matter which process makes an example.

    Args:
        source: Of samples somewhat larger than what is seen.
        image_size: What is seen.
        random: A random place and side; else the middle.
        seed: Of these.
    """

    def __init__(self, source: Source, *, image_size: int, random: bool, seed: int) -> None:
        self.source, self._size, self._random, self._seed = source, image_size, random, seed

    def __len__(self) -> int:
        return self.source.num_samples

    def __getitems__(self, samples: Sequence[Sample]) -> list[Example]:
        """The examples of some samples."""
        streams, labels, availability = self.source.read([sample.index for sample in samples])
        return [
            Example(self._cut([stream[at] for stream in streams], sample), labels[at], availability[at], sample)
            for at, sample in enumerate(samples)
        ]

    def _cut(self, images: Sequence[Tensor], sample: Sample) -> tuple[Tensor, ...]:
        room = images[0].shape[-1] - self._size
        top = left = room // 2
        mirrored = False
        if self._random:
            rng = np.random.default_rng((self._seed % 2**64, sample.epoch, sample.index))
            top, left = (int(value) for value in rng.integers(0, room + 1, 2))
            mirrored = bool(rng.random() < _FLIP_PROBABILITY)
        cut = [image[..., top : top + self._size, left : left + self._size] for image in images]
        return tuple(image.flip(-1) if mirrored else image for image in cut)


@dataclass(frozen=True)
class Collate:
    """Joins examples to a batch, and takes streams away.

    Attributes:
        dropout: What training takes away; None for nothing.
        seed: Of it. A draw also depends on the epoch and on the batch's first sample, and on nothing else.
    """

    dropout: ModalityDropout | None = None
    seed: int = 0

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """Stack images and labels, and merge what is missing with what is taken away."""
        num_streams = len(examples[0].streams)
        streams = tuple(torch.stack([example.streams[at] for example in examples]) for at in range(num_streams))
        availability = torch.stack([example.availability for example in examples])
        batch = Batch(streams, torch.stack([example.label for example in examples]), availability)
        index, epoch = examples[0].sample
        if self.dropout is None or self.dropout.rate_at(epoch) == 0:
            return batch
        words = np.random.SeedSequence((self.seed % 2**64, epoch, index)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(words[0] >> 1))
        drawn = self.dropout.draw(len(batch), num_streams, epoch, generator=generator)
        return replace(batch, availability=merge_availability(availability, drawn, generator=generator))


def stored_size(image_size: int) -> int:
    """How large pictures are kept, so that there is room for a random cut."""
    return round(image_size * _MARGIN)


def open_source(data: LinetDataConfig, *, split: str, seed: int) -> Source:
    """The samples that a configuration names.

    Args:
        data: Which.
        split: ``train`` or ``test``.
        seed: Of scenes.

    Raises:
        ConfigError: There is no directory.
        DataError: It is not in the layout.
    """
    size = stored_size(data.image_size)
    if data.kind == "scenes":
        if data.shading > 1:
            raise ConfigError(f"data.shading is {data.shading}", do="give a share from 0 to 1")
        num = data.num_test if split == "test" else data.num_scenes
        return SceneSource(
            split="test" if split == "test" else "train", num_scenes=num, seed=seed, size=size, shading=data.shading
        )
    if not data.directory:
        raise ConfigError(f"{data.kind} data has no place", do="give --data.directory DIR")
    root = Path(data.directory).expanduser()
    if not root.exists():
        raise DataError("the data set does not exist", where=data.directory, do="check --data.directory")
    if data.kind == "folders":
        return open_folders(root, split=split, size=size)
    opened = open_sunrgbd if data.kind == "sunrgbd" else open_nyuv2
    return opened(root, split=split, size=size, min_class_size=data.min_class_size)
