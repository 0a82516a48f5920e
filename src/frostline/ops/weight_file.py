"""A safetensors file of float32 weights, written tensor by tensor and read without copies."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from frostline.errors import CheckpointError, ConfigError
from frostline.units import format_bytes


@dataclass(frozen=True)
class WeightFile:
    """Float32 tensors by name.

    Attributes:
        path: Where it is.
    """

    path: Path

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Write all tensors, one at a time in host memory; a file that holds just these is used as it is.

        Raises:
            CheckpointError: A file is there and holds something else.
            ConfigError: There is too little room, or the directory cannot be made.
        """
        if self.path.exists():
            self._check(tensors)
            return
        start = _header(tensors)
        num_bytes = len(start) + sum(tensor.nbytes for tensor in tensors.values())
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"the weights' directory cannot be made: {error.strerror}", where=str(self.path.parent)
            ) from None
        free_bytes = shutil.disk_usage(self.path.parent).free
        if num_bytes > free_bytes:
            raise ConfigError(
                f"the weights need {format_bytes(num_bytes)}, the disk has {format_bytes(free_bytes)} free",
                where=str(self.path),
                do="put them on another disk",
            )
        unfinished = self.path.with_name(f"{self.path.name}.{os.getpid()}.unfinished")
        with unfinished.open("wb") as file:
            file.write(start)
            for tensor in tensors.values():
                file.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        unfinished.replace(self.path)

    def read(self, name: str) -> Tensor:
        """A tensor of the file, on the CPU: memory-mapped, read from the disk as it is used.

        Raises:
            CheckpointError: The file is gone, damaged, or has no such tensor.
        """
        try:
            with safe_open(self.path, "pt") as file:
                tensor: Tensor = file.get_tensor(name)
                return tensor
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"the float32 values of {name!r} cannot be read: {error}",
                where=str(self.path),
                do="bring the file back",
            ) from None

    def _check(self, tensors: Mapping[str, Tensor]) -> None:
        try:
            with safe_open(self.path, "pt") as file:
                names = set(file.keys())
                same = names == tensors.keys() and all(
                    torch.equal(file.get_tensor(name), tensor.detach().cpu()) for name, tensor in tensors.items()
                )
        except (OSError, SafetensorError):
            same = False
        if not same:
            raise CheckpointError(
                "a file that holds something else than these weights is there",
                where=str(self.path),
                do="give another path, or delete it",
            )


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    entries, offset = {}, 0
    for name, tensor in tensors.items():
        end = offset + tensor.nbytes
        entries[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
