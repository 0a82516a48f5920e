"""Features of a frozen upstream part, computed once a sample."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from frostline.errors import ConfigError, DataError, ShapeError, StepError
from frostline.ops.row_file import RowFile

_MARK_BYTES = 8


class FeatureCache:
    """One row of features a sample, filled as samples come by.

    Same as: computing the features each time, provided that they depend on the sample alone: a frozen part in
    eval mode, no augmentation before it. `key` says what they depend on (see `cache_key`).

    Proof class: ``EXACT``: a row comes back bit for bit as `compute` returned it. (A kernel may return other
    bits for the same sample in a batch of another size; then so does the plain step.)

    Memory: `nbytes` in host memory, or on disk with `path`; `fetch` adds the rows it returns. The upstream
    part is no longer needed once every row is filled.

    Cost: a copy and a CRC-32 (about 1 ms for 2 MB) a row.

    A file can be used again by the next run, also after a crash: every row carries its checksum, and a row
    that does not fit it (torn by a power cut, damaged on disk) counts as missing, is counted in `num_damaged`
    and is computed again. It is a plain safetensors file with the tensors ``features`` and ``marks`` (0: not
    filled; otherwise the row's CRC-32 plus 1). Several processes may fill one file; one must have made it.

    Args:
        num_samples: Rows.
        shape: Of one sample's features.
        dtype: Of the features; `compute` must return this type.
        key: What the features depend on.
        path: The file; None keeps the rows in host memory.

    Attributes:
        nbytes: Planned size, known before anything is written.
        num_damaged: Rows found damaged so far.

    Raises:
        CheckpointError: The file was made for another key, shape or type, or is no feature cache.
        ConfigError: The disk has no room for the file. Nothing has been written then.
    """

    def __init__(
        self,
        num_samples: int,
        shape: tuple[int, ...],
        *,
        dtype: torch.dtype,
        key: str,
        path: Path | None = None,
    ) -> None:
        self.num_samples, self.shape, self.dtype = num_samples, tuple(shape), dtype
        self.num_damaged = 0
        self._file = None if path is None else RowFile(path, num_samples, self.shape, dtype, key)
        self._row_bytes = math.prod(self.shape) * dtype.itemsize
        self.nbytes = num_samples * (self._row_bytes + _MARK_BYTES) if self._file is None else self._file.nbytes
        if self._file is not None:
            self._file.check()

    def fetch(self, indices: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """The features of some samples, in order, in host memory.

        Args:
            indices: Sample numbers ``(B,)``.
            compute: Called with the positions in `indices` ``(M,)`` whose samples are missing, if there are
                any; returns their features ``(M, *shape)`` on any device.

        Raises:
            DataError: An index is outside the cache.
            ShapeError: `compute` returned another shape.
            ConfigError: `compute` returned another type: converting would no longer be exact.
            StepError: What `compute` returned depends on something that trains, which caching would cut off.
        """
        samples = indices.tolist()
        for sample in samples:
            if not 0 <= sample < self.num_samples:
                raise DataError(f"sample {sample} is outside a feature cache of {self.num_samples} samples")
        missing = [position for position, sample in enumerate(samples) if not self._holds(sample)]
        if missing:
            rows = compute(torch.tensor(missing, device=indices.device))
            self._check(rows, len(missing))
            for position, row in zip(missing, rows.cpu(), strict=True):
                self._fill(samples[position], row)
        rows_bytes, _ = self._rows
        return rows_bytes[indices.cpu()].view(self.dtype).view(len(samples), *self.shape)

    @cached_property
    def _rows(self) -> tuple[Tensor, Tensor]:
        """The rows as bytes ``(num_samples, row_bytes)`` and the marks ``(num_samples,)``."""
        if self._file is not None:
            return self._file.open()
        rows = torch.empty(self.num_samples, self._row_bytes, dtype=torch.uint8)
        return rows, torch.zeros(self.num_samples, dtype=torch.int64)

    def _holds(self, sample: int) -> bool:
        rows, marks = self._rows
        if marks[sample] == 0:
            return False
        if marks[sample] == _mark(rows[sample]):
            return True
        self.num_damaged += 1
        return False

    def _fill(self, sample: int, row: Tensor) -> None:
        rows, marks = self._rows
        rows[sample] = row.contiguous().view(-1).view(torch.uint8)
        marks[sample] = _mark(rows[sample])  # last: a row without its mark is missing, not wrong

    def _check(self, rows: Tensor, num_rows: int) -> None:
        expected = (num_rows, *self.shape)
        if tuple(rows.shape) != expected:
            raise ShapeError("computed features", expected=expected, actual=tuple(rows.shape), where="FeatureCache")
        if rows.dtype != self.dtype:
            raise ConfigError(
                f"computed features are {rows.dtype}, the cache keeps {self.dtype}",
                where="FeatureCache",
                do="make the cache with the features' type, or convert them in compute, where it can be seen",
            )
        if rows.requires_grad:
            raise StepError(
                "the features to be cached depend on something that trains: a cached copy gets no gradient",
                where="FeatureCache",
                do="freeze all of the part before the cache, or do without it",
            )


def cache_key(*parts: nn.Module | Tensor | str | bytes) -> str:
    """SHA-256 over everything that cached features depend on.

    Give the frozen part itself (class names, parameters and all buffers with their names, shapes, types and
    bytes), its preprocessing as text (size, mean, interpolation), and a description of the data (a list's
    digest, names and sizes), in a fixed order. What a module does beyond its weights (an activation, an
    epsilon, a mode) is not seen: add the configuration as text where it can change.

    Args:
        parts: Modules, tensors, texts, bytes.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, nn.Module):
            for name, module in part.named_modules():
                _add(digest, f"module {name} {type(module).__qualname__}", b"")
            for name, tensor in (*part.named_parameters(), *part.named_buffers()):
                _add_tensor(digest, name, tensor)
        elif isinstance(part, Tensor):
            _add_tensor(digest, "", part)
        else:
            _add(digest, type(part).__name__, part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


def _add_tensor(digest: hashlib._Hash, name: str, tensor: Tensor) -> None:
    content = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
    _add(digest, f"tensor {name} {tensor.dtype} {tuple(tensor.shape)}", content)


def _add(digest: hashlib._Hash, what: str, content: bytes | memoryview) -> None:
    # Lengths first, so that two parts cannot be taken for two others.
    digest.update(f"{len(what)} {what} {len(content)} ".encode())
    digest.update(content)


def _mark(row: Tensor) -> int:
    return zlib.crc32(row.numpy().data) + 1
