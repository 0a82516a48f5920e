"""From a source to batches: real images, and what is random about the images that are rendered beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from frostline.systems.graf.camera import Poses
from frostline.systems.graf.generator import Draw, Generator
from frostline.systems.graf.objective import Photographs
from frostline.systems.graf.sources import Source
from frostline.training import Sample

_PLAYERS = 2


@dataclass(frozen=True)
class Batch:
    """What both players see in one step.

    Everything random is drawn with the example, so that it depends on neither process, worker nor device; the
    discriminator's renderings have other latent codes, places and noise than the generator's.

    Attributes:
        images: Real, uint8 (B, 3, S, S).
        classes: Int64 (B,).
        azimuth_degrees: (B,).
        elevation_degrees: (B,).
        latents: Standard normal, (B, 2, Z).
        places: Between 0 and 1, (B, 2, 3); see `RaySampler.place`.
        seeds: Of noise and augmentation, int64 (B, 2).
    """

    images: Tensor
    classes: Tensor
    azimuth_degrees: Tensor
    elevation_degrees: Tensor
    latents: Tensor
    places: Tensor
    seeds: Tensor

    def __len__(self) -> int:
        return len(self.classes)

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """The same batch on a device."""
        return type(self)(*(tensor.to(device, non_blocking=non_blocking) for tensor in self.tensors()))

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory."""
        return type(self)(*(tensor.pin_memory() for tensor in self.tensors()))

    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, in the order of the attributes."""
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    def photographs(self, generator: Generator) -> Photographs:
        """The real images, from -1 to 1, in the generator's type."""
        return Photographs(self.images.to(generator.dtype) / 127.5 - 1, self.classes, self.poses())

    def poses(self) -> Poses:
        """Of the real images' cameras; generated images take them too, and so have the data's distribution."""
        return Poses.from_degrees(self.azimuth_degrees, self.elevation_degrees)

    def draw(self, generator: Generator, player: int, *, step: int) -> Draw:
        """What to render.

        Args:
            generator: Knows the patches.
            player: For which, 0 the discriminator, 1 the generator.
            step: Steps made so far.
        """
        patch = generator.sampler.place(self.places[:, player], step=step)
        latents = self.latents[:, player].to(generator.dtype)
        return Draw(latents, self.classes, self.poses(), patch, self.seeds[:, player])


@dataclass(frozen=True)
class Example:
    """One row of a batch."""

    image: Tensor
    labels: tuple[int, float, float]
    latents: np.ndarray
    places: np.ndarray
    seeds: np.ndarray


class GrafDataset:
    """Examples by sample.

    Args:
        source: Of the real images.
        latent_size: Entries of a latent code.
        seed: Of what is random; with epoch and index it says everything.
    """

    def __init__(self, source: Source, *, latent_size: int, seed: int) -> None:
        self.source, self._latent_size, self._seed = source, latent_size, seed

    def __len__(self) -> int:
        return len(self.source.classes)

    def __getitems__(self, samples: Sequence[Sample]) -> list[Example]:
        """The examples of some samples."""
        images = self.source.read([sample.index for sample in samples])
        return [self._example(image, sample) for image, sample in zip(images, samples, strict=True)]

    def _example(self, image: Tensor, sample: Sample) -> Example:
        rng = np.random.default_rng((self._seed % 2**64, sample.epoch, sample.index))
        source, row = self.source, sample.index
        labels = int(source.classes[row]), float(source.azimuth_degrees[row]), float(source.elevation_degrees[row])
        return Example(
            image,
            labels,
            rng.standard_normal((_PLAYERS, self._latent_size), np.float32),
            rng.random((_PLAYERS, 3), np.float32),
            rng.integers(2**62, size=_PLAYERS),
        )


def collate(examples: Sequence[Example]) -> Batch:
    """Join examples to a batch."""
    classes, azimuths, elevations = zip(*(example.labels for example in examples), strict=True)

    def joined(arrays: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(arrays))

    return Batch(
        torch.stack([example.image for example in examples]),
        torch.tensor(classes),
        torch.tensor(azimuths),
        torch.tensor(elevations),
        joined([example.latents for example in examples]),
        joined([example.places for example in examples]),
        joined([example.seeds for example in examples]),
    )
