"""A safetensors file of equal rows, made at full size and memory-mapped."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from frostline.errors import CheckpointError, ConfigError
from frostline.units import format_bytes

# The format's names of the types that features come in.
_TYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_KEY = "frostline_key"


class RowFile:
    """The tensors ``marks`` ``(num_rows,)`` and ``features`` ``(num_rows, *shape)`` in one file.

    The layout is the safetensors format's: eight bytes with the header's length, a JSON header, the data. The
    marks come first, for their alignment. A new file is all zeros.

    Args:
        path: The file.
        num_rows: Rows.
        shape: Of one row.
        dtype: Of the features.
        key: Kept in the header; a file with another one is not used.

    Attributes:
        nbytes: Size of the file.

    Raises:
        ConfigError: A type that the format does not know.
    """

    def __init__(self, path: Path, num_rows: int, shape: tuple[int, ...], dtype: torch.dtype, key: str) -> None:
        if dtype not in _TYPE_NAMES:
            raise ConfigError(f"{dtype} features cannot be kept in a safetensors file", where=str(path))
        self._path, self._num_rows = path, num_rows
        self._row_bytes = math.prod(shape) * dtype.itemsize
        marks_bytes = 8 * num_rows
        data_bytes = marks_bytes + num_rows * self._row_bytes
        self._key = key
        self._features = {
            "dtype": _TYPE_NAMES[dtype],
            "shape": [num_rows, *shape],
            "data_offsets": [marks_bytes, data_bytes],
        }
        header = {
            "__metadata__": {_KEY: key},
            "marks": {"dtype": "I64", "shape": [num_rows], "data_offsets": [0, marks_bytes]},
            "features": self._features,
        }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._start = len(text).to_bytes(8, "little") + text
        self.nbytes = len(self._start) + data_bytes

    def check(self) -> None:
        """Look whether the file that is there can be used, or a new one has room. Writes nothing.

        Raises:
            CheckpointError: The file is of another key, shape or type, incomplete, or something else.
            ConfigError: There is too little room.
        """
        if self._path.exists():
            self._check_existing()
            return
        folder = next(parent for parent in self._path.absolute().parents if parent.exists())
        free_bytes = shutil.disk_usage(folder).free
        if self.nbytes > free_bytes:
            need, free = format_bytes(self.nbytes), format_bytes(free_bytes)
            raise ConfigError(
                f"the feature cache needs {need}, the disk has {free} free",
                where=str(self._path),
                do="put it on another disk, keep fewer or smaller features, or do without the cache",
            )

    def open(self) -> tuple[Tensor, Tensor]:
        """Map the file, made first where it is not there.

        Returns:
            The rows as bytes ``(num_rows, row_bytes)`` and the marks ``(num_rows,)``; writing to them writes
            to the file.
        """
        if not self._path.exists():
            self._make()
        start = len(self._start)
        marks = np.memmap(self._path, np.int64, "r+", start, (self._num_rows,))
        rows = np.memmap(self._path, np.uint8, "r+", start + marks.nbytes, (self._num_rows, self._row_bytes))
        return torch.from_numpy(rows), torch.from_numpy(marks)

    def _make(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"the feature cache's directory cannot be made: {error.strerror}", where=str(self._path.parent)
            ) from None
        unfinished = self._path.with_name(f"{self._path.name}.{os.getpid()}.unfinished")
        with unfinished.open("wb") as file:
            file.write(self._start)
            file.truncate(self.nbytes)
            if sys.platform == "linux":  # take the room now: a full disk later would kill the process by a signal
                os.posix_fallocate(file.fileno(), 0, self.nbytes)
        unfinished.replace(self._path)

    def _check_existing(self) -> None:
        with self._path.open("rb") as file:
            start = file.read(len(self._start))
            length = int.from_bytes(start[:8], "little")
            if start == self._start and self._path.stat().st_size == self.nbytes:
                return
            text = start[8:] + file.read(max(0, min(length, 10**6) + 8 - len(start)))
        try:
            header = json.loads(text[:length])
            key, features = header["__metadata__"][_KEY], header["features"]
        except (ValueError, KeyError, TypeError):
            raise self._refuse("is not a feature cache") from None
        if key != self._key:
            raise self._refuse(f"holds features of key {key}, this run's key is {self._key}")
        if features != self._features:
            held, wanted = (f"{entry['dtype']} {entry['shape']}" for entry in (features, self._features))
            raise self._refuse(f"holds {held}, this run needs {wanted}")
        raise self._refuse(f"is {self._path.stat().st_size} bytes long, not {self.nbytes}")

    def _refuse(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"the feature cache {what}",
            where=str(self._path),
            do="delete the file to compute the features again, or give another path",
        )
