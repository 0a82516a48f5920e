"""Embeddings of other programs: read where the space is the same, refused with the reason where it is not."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor

from frostline.errors import CheckpointError, ConfigError
from frostline.systems.ti.concept import Concept
from frostline.systems.ti.files import FORMAT, check_width, read_safetensors
from frostline.systems.ti.prompts import Space

_CLIP_KEYS = {"clip_l": "CLIP-L", "clip_g": "OpenCLIP-G"}
_T5_KEYS = ("t5xxl", "t5xl", "t5", "t5base")
_CLIP_WIDTHS = {768: "CLIP-L (Stable Diffusion 1)", 1024: "OpenCLIP-H (Stable Diffusion 2)", 1280: "OpenCLIP-G (SDXL)"}
_T5_KEY_OF_WIDTH = {4096: "t5xxl", 2048: "t5xl", 768: "t5base"}
_EDITINFINITY_ROWS = 20
_SPACES = {"t5-input": "before T5, among its input embeddings", "t5-output": "behind T5, in its last hidden states"}


def import_concept(
    path: Path,
    *,
    carrier: str,
    width: int,
    space: Space,
    name: str = "",
    fixed_norm: bool | None = None,
) -> Concept:
    """Read one concept of diffusers, A1111, ComfyUI, ARBooth or EditInfinity.

    Textual inversion's usual files hold *input* embeddings, and most are of CLIP. Only T5's fit here, and only where
    the concept lives before T5. ARBooth and EditInfinity learn vectors behind T5, as frostline does by default; ARBooth
    puts its 4 in the place of one row and tunes layers along, EditInfinity appends its 20 behind the end token: here
    they fill as many positions of the prompt, so images are not those of the other program.

    Pickles are read with ``weights_only=True``: they run no code.

    Args:
        path: ``.safetensors``, ``.pt``, ``.pth`` or ``.bin``.
        carrier: The word that the text encoder reads in the concept's place; these files do not keep one.
        width: Of the text encoder.
        space: Where the concept shall live.
        name: Its placeholder; empty to take the file's, which must then have one in angle brackets.
        fixed_norm: See `Concept`.

    Raises:
        CheckpointError: The file cannot be read, or its vectors live in another space or have another width.
        ConfigError: Neither the file nor `name` says the placeholder.
    """
    if path.suffix == ".safetensors":
        metadata, content = read_safetensors(path)
        if metadata.get("format") == FORMAT:
            raise CheckpointError("the file is one of ours", where=str(path), do="read it with load_concepts")
    else:
        content = _unpickled(path)
    vectors, found, of = _find(content, path)
    if of != space:
        raise CheckpointError(
            f"the vectors live {_SPACES[of]}; this concept shall live {_SPACES[space]}",
            where=str(path),
            do=f"import them with space {of}" if of == "t5-input" else "import them behind T5, where they were learned",
        )
    check_width(vectors, width, path)
    if not name and not (found.startswith("<") and found.endswith(">")):
        raise ConfigError(f"the file calls its concept {found!r}", where=str(path), do="give name, such as <s>")
    return Concept(name or found, vectors, carrier=carrier, space=space, fixed_norm=fixed_norm)


def export_concept(path: Path, concept: Concept, *, form: Literal["diffusers", "comfyui"], key: str = "") -> None:
    """Write a concept that lives before T5 as others read it.

    Args:
        path: A safetensors file.
        concept: In the space ``t5-input``.
        form: ``diffusers``: one tensor under the placeholder. ``comfyui``: one tensor under the encoder's key, and the
            file's name becomes the concept's.
        key: ComfyUI's name of the encoder; empty to tell by the width.

    Raises:
        ConfigError: The concept lives behind T5, where no other program looks; or the encoder's name is not known.
    """
    if concept.space != "t5-input":
        raise ConfigError(
            f"{concept.name} lives {_SPACES[concept.space]}: no other program puts vectors there",
            where=str(path),
            do="train it with space t5-input to use it elsewhere",
        )
    width = concept.vectors.shape[1]
    if form == "comfyui" and not key:
        if width not in _T5_KEY_OF_WIDTH:
            raise ConfigError(f"no T5 of ComfyUI is {width} wide", where=str(path), do="give its key")
        key = _T5_KEY_OF_WIDTH[width]
    vectors = concept.vectors.detach().cpu().contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({key if form == "comfyui" else concept.name: vectors}, path)


def _unpickled(path: Path) -> Any:
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files from before torch 1.6 cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"the file cannot be read: {error.strerror or error}", where=str(path)) from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"the file holds more than tensors, or is damaged: {str(error).splitlines()[0][:120]}",
            where=str(path),
            do="it may run any code when it is opened. Convert it to safetensors in a place you can afford to lose",
        ) from None


def _find(content: Any, path: Path) -> tuple[Tensor, str, Space]:
    """The vectors (k, C), the name that the file gives them, and where they live."""
    if isinstance(content, Tensor):
        return _editinfinity(content, path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"the file holds a {type(content).__name__}", where=str(path), do="give an embedding")
    for inner in (content, content.get("model")):
        if isinstance(inner, Mapping) and isinstance(inner.get("special_token"), Tensor):
            return _rows(inner["special_token"], path), "special_token", "t5-output"
    if "string_to_param" in content:
        parameters = content["string_to_param"]
        vectors = next(iter(parameters.values()), None) if isinstance(parameters, Mapping) else None
        return _unknown_encoder(_rows(vectors, path), path), str(content.get("name", "*")), "t5-input"
    for key in _T5_KEYS:
        if key in content:
            return _rows(content[key], path), path.stem, "t5-input"
    clip = [f"{key} ({_CLIP_KEYS[key]})" for key in content if key in _CLIP_KEYS]
    if clip:
        raise CheckpointError(
            f"the file holds {', '.join(clip)}: embeddings of CLIP, which this model does not have",
            where=str(path),
            do="train the concept here, or give a file with a t5 entry",
        )
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if len(tensors) != 1:
        raise CheckpointError(
            f"the file holds {len(tensors)} tensors: {', '.join(map(str, list(content)[:4]))}",
            where=str(path),
            do="give a file of one embedding",
        )
    name, vectors = next(iter(tensors.items()))
    return _unknown_encoder(_rows(vectors, path), path), str(name), "t5-input"


def _unknown_encoder(vectors: Tensor, path: Path) -> Tensor:
    """A file without an encoder's name: widths of CLIP are CLIP's."""
    width = vectors.shape[1]
    if width in _CLIP_WIDTHS:
        raise CheckpointError(
            f"the vectors are {width} wide and the file names no encoder: that is {_CLIP_WIDTHS[width]}, "
            "which this model does not have",
            where=str(path),
            do="train the concept here; if it is a T5's after all, store the tensor under the key t5",
        )
    return vectors


def _editinfinity(content: Tensor, path: Path) -> tuple[Tensor, str, Space]:
    if content.dim() == 3 and content.shape[0] == 1 and content.shape[1] >= _EDITINFINITY_ROWS:
        return _rows(content[0, :_EDITINFINITY_ROWS], path), path.stem, "t5-output"
    return _rows(content, path), path.stem, "t5-output"


def _rows(value: Any, path: Path) -> Tensor:
    if not isinstance(value, Tensor) or value.dim() not in (1, 2) or not value.is_floating_point():
        what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise CheckpointError(f"expected vectors (k, width), found {what}", where=str(path))
    return value.detach().reshape(-1, value.shape[-1]).float()
