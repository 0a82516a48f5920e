"""Concept files: a few KB of safetensors that say what they fit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from frostline.errors import CheckpointError, FrostlineError
from frostline.systems.ti.concept import Concept

FORMAT, VERSION = "frostline-concept", "1"


def save_concepts(path: Path, concepts: Sequence[Concept], *, base_model: str, text_encoder: str, step: int) -> None:
    """Write concepts, one tensor each under its placeholder.

    The file appears whole or not at all. The metadata has the format and its version, the two models, the step, and
    a concept's space, carrier, number of vectors and root mean squares.

    Args:
        path: Of the file, by habit ``concept.safetensors``; its folder is made.
        concepts: With names of their own.
        base_model: Id of the image model they were trained for.
        text_encoder: Id of its text encoder.
        step: Updates made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {concept.name: concept.vectors.detach().cpu().contiguous() for concept in concepts}
    metadata = describe_concepts(concepts, base_model=base_model, text_encoder=text_encoder, step=step)
    unfinished = path.with_name(f"{path.name}.next")
    unfinished.write_bytes(safetensors.torch.save(tensors, metadata))
    unfinished.replace(path)


def describe_concepts(concepts: Sequence[Concept], *, base_model: str, text_encoder: str, step: int) -> dict[str, str]:
    """The metadata of a concept file, whoever writes its tensors; arguments as of `save_concepts`."""
    about = {
        concept.name: {
            "space": concept.space,
            "carrier": concept.carrier,
            "num_vectors": concept.num_vectors,
            "rms": concept.rms.tolist(),
            "fixed_norm": concept.fixed_norm,
        }
        for concept in concepts
    }
    return {
        "format": FORMAT,
        "version": VERSION,
        "base_model": base_model,
        "text_encoder": text_encoder,
        "step": str(step),
        "concepts": json.dumps(about),
    }


def load_concepts(
    path: Path, *, base_model: str = "", text_encoder: str = "", width: int | None = None
) -> tuple[Concept, ...]:
    """Read concepts, if they fit.

    Args:
        path: Of the file.
        base_model: Id of the image model they shall be used with; empty where it is not known.
        text_encoder: Id of its text encoder; empty where it is not known.
        width: Of its text features.

    Raises:
        CheckpointError: The file is missing, damaged or of another format, or its concepts are of other models.
    """
    metadata, tensors = read_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            "the file has no concepts of ours",
            where=str(path),
            do="import_concept reads files of diffusers, A1111, ComfyUI, ARBooth and EditInfinity",
        )
    if metadata.get("version") != VERSION:
        raise CheckpointError(
            f"the file has version {metadata.get('version')}, this one reads {VERSION}",
            where=str(path),
            do="read it with the version of frostline that wrote it",
        )
    for what, mine in (("base_model", base_model), ("text_encoder", text_encoder)):
        if mine and metadata.get(what) != mine:
            raise CheckpointError(
                f"the concepts were trained for the {what.replace('_', ' ')} {metadata.get(what)!r}, this is {mine!r}",
                where=str(path),
                do="use the model they were trained for: vectors mean nothing to another",
            )
    try:
        about: dict[str, dict[str, Any]] = json.loads(metadata["concepts"])
        concepts = tuple(_concept(name, tensors[name], entry) for name, entry in about.items())
    except FrostlineError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"the file is damaged: {type(error).__name__} {error}", where=str(path)) from None
    for concept in concepts:
        check_width(concept.vectors, width, path)
    return concepts


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file.

    Raises:
        CheckpointError: It is missing or no such file.
    """
    try:
        with safetensors.safe_open(str(path), "pt") as file:
            return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in file.keys()}
    except OSError as error:
        raise CheckpointError(f"the file cannot be read: {error.strerror or error}", where=str(path)) from None
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"the file is damaged, or no safetensors: {error}", where=str(path)) from None


def check_width(vectors: Tensor, width: int | None, path: Path) -> None:
    """Refuse vectors of another width than the text encoder's.

    Raises:
        CheckpointError: They are.
    """
    if width is not None and vectors.shape[-1] != width:
        raise CheckpointError(
            f"the vectors are {vectors.shape[-1]} wide, the text encoder's are {width}: they are of another encoder",
            where=str(path),
            do="use the text encoder they were trained with",
        )


def _concept(name: str, vectors: Tensor, about: dict[str, Any]) -> Concept:
    concept = Concept(
        name, vectors, carrier=about["carrier"], space=about["space"], fixed_norm=bool(about["fixed_norm"])
    )
    if concept.num_vectors != about["num_vectors"]:
        raise ValueError(f"{name} has {concept.num_vectors} vectors, not {about['num_vectors']}")
    concept.rms.copy_(torch.tensor(about["rms"]))
    return concept
