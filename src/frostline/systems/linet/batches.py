"""A batch of several streams, and what a loader's items must look like."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from frostline.errors import DataError
from frostline.systems.linet.availability import ModalityDropout, merge_availability

UNLABELLED = -100
"""The label of a sample that has none."""


@dataclass(frozen=True)
class Batch:
    """B samples.

    Attributes:
        streams: Images ``(B, C_i, H, W)`` of each stream, float or uint8.
        labels: Classes ``(B,)``.
        availability: ``(B, N)`` bool on the CPU, where reading it waits for nobody; None if nothing is missing.
    """

    streams: tuple[Tensor, ...]
    labels: Tensor
    availability: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """The batch on a device; its availability stays with the host."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, called by torch's loader."""
        return self._map(Tensor.pin_memory)

    def thinned(self, drawn: Tensor) -> Batch:
        """The batch without the streams that are taken away; see `merge_availability`."""
        real = self.availability
        return replace(self, availability=drawn if real is None else merge_availability(real, drawn))

    def restricted(self, streams: Sequence[int]) -> Batch:
        """The samples that have one of some streams, with these streams alone."""
        kept = torch.zeros(len(self), len(self.streams), dtype=torch.bool)
        kept[:, list(streams)] = True
        kept = kept if self.availability is None else kept & self.availability
        rows = kept.any(1)
        if bool(rows.all()):
            return replace(self, availability=kept)
        device = self.labels.device
        chosen = tuple(stream[rows.to(stream.device)] for stream in self.streams)
        return Batch(chosen, self.labels[rows.to(device)], kept[rows])

    def _map(self, move: Callable[[Tensor], Tensor]) -> Batch:
        return replace(self, streams=tuple(move(stream) for stream in self.streams), labels=move(self.labels))


def read_batch(item: object, num_streams: int, *, labelled: bool = True) -> Batch:
    """A loader's item as a batch.

    Args:
        item: A `Batch`, or a tuple of the streams and their labels; an availability ``(B, N)`` may stand before
            the labels.
        num_streams: Of the network.
        labelled: Whether there must be labels.

    Raises:
        DataError: It is neither.
    """
    if isinstance(item, Batch):
        return item
    parts = list(item) if isinstance(item, (tuple, list)) else []
    streams, rest = parts[:num_streams], parts[num_streams:]
    if not labelled and not rest and len(streams) == num_streams:
        rest = [torch.full((len(streams[0]),), UNLABELLED)]
    if len(rest) not in (1, 2) or not all(isinstance(part, Tensor) for part in parts):
        raise DataError(
            f"a batch of a network with {num_streams} streams is not {_described(item)}",
            do="let the loader yield (stream 0, ..., labels), or (stream 0, ..., availability, labels)",
        )
    availability = rest[0].cpu() if len(rest) == 2 else None
    return Batch(tuple(streams), rest[-1], availability)


def read_batches(loader: Iterable[object], num_streams: int, *, labelled: bool = True) -> Iterator[Batch]:
    """A loader's batches; see `read_batch`."""
    return (read_batch(item, num_streams, labelled=labelled) for item in loader)


def take_away(batch: Batch, dropout: ModalityDropout | None, epoch: int) -> Batch:
    """Modality dropout on one batch, drawn from torch's own generator."""
    if dropout is None or dropout.rate_at(epoch) == 0:
        return batch
    return batch.thinned(dropout.draw(len(batch), len(batch.streams), epoch))


def _described(item: object) -> str:
    if isinstance(item, (tuple, list)):
        return f"a {type(item).__name__} of {len(item)}"
    return f"a {type(item).__name__}"
