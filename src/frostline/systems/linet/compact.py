"""Compact streams: each stream runs on the samples that have it, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frostline.errors import ConfigError, DataError, ShapeError


@dataclass(frozen=True)
class Rows:
    """Which samples have which stream, known to the host: sizes follow from it.

    Attributes:
        batch_size: Samples.
        indices: For each stream the samples that have it, ``(n_i,)`` in order; None where all do.
        availability: ``(B, N)`` bool on the streams' device.
    """

    batch_size: int
    indices: tuple[Tensor | None, ...]
    availability: Tensor

    @staticmethod
    def of(availability: Tensor, device: torch.device | str = "cpu") -> Rows:
        """Read an availability; one on a GPU is copied to the host, once for all streams.

        Args:
            availability: ``(B, N)`` bool, True where the sample has the stream.
            device: Of the streams.

        Raises:
            ShapeError: It is not two-dimensional.
            ConfigError: It is not bool.
            DataError: A sample has no stream at all.
        """
        if availability.dim() != 2:
            raise ShapeError("availability", expected=("B", "N"), actual=tuple(availability.shape))
        if availability.dtype != torch.bool:
            raise ConfigError(f"availability is of type {availability.dtype}", do="give bool, True for what is there")
        there: np.ndarray[Any, np.dtype[np.bool_]] = availability.cpu().numpy()
        if not there.any(axis=1).all():
            raise DataError(
                f"sample {int((~there.any(axis=1)).argmax())} of the batch has no stream at all",
                do="leave such samples out: there is nothing to classify them by",
            )
        indices = tuple(
            None if column.all() else torch.from_numpy(np.flatnonzero(column)).to(device, non_blocking=True)
            for column in there.T
        )
        return Rows(len(there), indices, availability.to(device, non_blocking=True))

    @staticmethod
    def all(batch_size: int, num_streams: int, device: torch.device | str = "cpu") -> Rows:
        """Every sample has every stream."""
        availability = torch.ones(batch_size, num_streams, dtype=torch.bool, device=device)
        return Rows(batch_size, (None,) * num_streams, availability)

    @property
    def num_streams(self) -> int:
        """Streams, whether anybody has them or not."""
        return len(self.indices)

    def gather(self, streams: Sequence[Tensor]) -> list[Tensor]:
        """The samples that each stream runs on, channels last; what is missing is never read.

        Args:
            streams: ``(B, C_i, H, W)`` each.

        Raises:
            ShapeError: Another number of streams or samples.
        """
        sizes = tuple(len(stream) for stream in streams)
        if sizes != (self.batch_size,) * self.num_streams:
            expected = (self.batch_size,) * self.num_streams
            raise ShapeError("the samples of each stream", expected=expected, actual=sizes)
        return [
            self.take(index, stream).contiguous(memory_format=torch.channels_last)
            for index, stream in enumerate(streams)
        ]

    def take(self, stream: int, whole: Tensor) -> Tensor:
        """The rows ``(n_i, ...)`` of a whole batch ``(B, ...)`` that have a stream."""
        index = self.indices[stream]
        return whole if index is None else whole.index_select(0, index)

    def add_(self, stream: int, whole: Tensor, part: Tensor) -> Tensor:
        """Add a stream's rows to a whole batch, in place, keeping for backward nothing but their numbers.

        Args:
            stream: Which.
            whole: ``(B, ...)``.
            part: ``(n_i, ...)``.
        """
        index = self.indices[stream]
        if index is None:
            return whole.add_(part)
        total: Tensor = _AddRows.apply(whole, index, part)  # type: ignore[no-untyped-call]
        return total


class _AddRows(torch.autograd.Function):
    """``index_add_``; torch's own keeps all of `part` for backward, for its sizes."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, index: Tensor, part: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.mark_dirty(whole)
        return whole.index_add_(0, index, part)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        return grad, None, grad.index_select(0, index) if ctx.needs_input_grad[2] else None
