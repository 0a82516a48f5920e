"""A run's state in two files, whole at every moment.

The trainables are a safetensors file that anyone can load; ``resume.pt`` is one dict of plain values and
tensors. Both are written beside their places first, then moved there, ``resume.pt`` last. It holds the digest
of its trainables, so a crash between the two moves is seen, and finished, by the next load.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from frostline.errors import CheckpointError

_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A run after some step.

    Attributes:
        step: Steps made.
        trainables: Trainable parameters and buffers by qualified name.
        phases: Each phase's `state_dict` by its name.
        rng: Each process's `rng_state`, by rank.
        config_text: The configuration the run was started with.
        metadata: What the trainables' file also says of itself.
    """

    step: int
    trainables: dict[str, Tensor]
    phases: dict[str, dict[str, Any]]
    rng: Sequence[dict[str, Tensor]]
    config_text: str
    metadata: dict[str, str] = field(default_factory=dict)


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """The state of the only generators a step may draw from: torch's, for the CPU and for a GPU."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_rng_(state: dict[str, Tensor], device: torch.device) -> None:
    """Set torch's generators to what `rng_state` returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


class CheckpointStore:
    """The checkpoint in a run's directory.

    Args:
        directory: Made on the first save.
        trainables: Name of the safetensors file.
    """

    def __init__(self, directory: Path, trainables: str = "codec.safetensors") -> None:
        self.directory = directory
        self.trainables, self.resume = directory / trainables, directory / "resume.pt"

    def save(self, checkpoint: Checkpoint) -> Path:
        """Replace the directory's checkpoint; a crash at any moment leaves the old or the new one to load."""
        tensors = {name: tensor.detach().contiguous() for name, tensor in checkpoint.trainables.items()}
        trainables = safetensors.torch.save(tensors, {**checkpoint.metadata, "step": str(checkpoint.step)})
        state = {
            "format": _FORMAT,
            "trainables_sha256": _digest(trainables),
            "step": checkpoint.step,
            "phases": checkpoint.phases,
            "rng": list(checkpoint.rng),
            "config_text": checkpoint.config_text,
        }
        resume = io.BytesIO()
        torch.save(state, resume)
        self.directory.mkdir(parents=True, exist_ok=True)
        _write(_next(self.trainables), trainables)
        _write(_next(self.resume), resume.getvalue())
        _next(self.trainables).replace(self.trainables)
        _next(self.resume).replace(self.resume)
        return self.trainables

    def load(self) -> Checkpoint:
        """Read the checkpoint, all tensors on the CPU; finishes a save that died between its two moves.

        Raises:
            CheckpointError: A file is missing, damaged, of another format, or the two are of different saves.
        """
        trainables = _read(self.trainables)
        if _is_of(_next(self.resume), trainables):
            _next(self.resume).replace(self.resume)
        state = _unpickle(self.resume)
        if state["trainables_sha256"] != _digest(trainables):
            raise CheckpointError(
                f"{self.trainables.name} was not saved with {self.resume.name} of step {state['step']}",
                where=str(self.directory),
                do="put the two files of one save together, or start a new run",
            )
        return Checkpoint(
            step=state["step"],
            trainables=_tensors(self.trainables, trainables),
            phases=state["phases"],
            rng=state["rng"],
            config_text=state["config_text"],
        )

    def load_trainables(self) -> dict[str, Tensor]:
        """Read the trainables alone, as evaluation does.

        Raises:
            CheckpointError: The file is missing or damaged.
        """
        return _tensors(self.trainables, _read(self.trainables))


def _next(path: Path) -> Path:
    return path.with_name(f"{path.name}.next")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # the bytes must be on disk before the name moves


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"there is no {path.name}",
            where=str(path.parent),
            do="name the run's directory, or start a new run",
        ) from None


def _tensors(path: Path, data: bytes) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise _damaged(path, error) from None
    return tensors


def _unpickle(path: Path) -> dict[str, Any]:
    data = _read(path)
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        written = state["format"]
    except Exception as error:  # a damaged zip or pickle fails in any way
        raise _damaged(path, error) from None
    if written != _FORMAT:
        raise CheckpointError(
            f"{path.name} has format {written}, this version reads {_FORMAT}",
            where=str(path.parent),
            do="resume with the version of frostline that wrote it",
        )
    return dict(state)


def _is_of(path: Path, trainables: bytes) -> bool:
    """Whether a resume file exists, is whole and was saved with these trainables."""
    try:
        return bool(_unpickle(path)["trainables_sha256"] == _digest(trainables))
    except CheckpointError:
        return False


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path.name} is damaged: {type(error).__name__}",
        where=str(path.parent),
        do="restore it from a copy, or start a new run",
    )
