"""Pictures on request, from a run's concepts or from files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from frostline.errors import ConfigError
from frostline.systems.ti.concept import Concept
from frostline.systems.ti.config import GenerateOptions, TiConfig
from frostline.systems.ti.drawing import Painter, sheet, write_picture
from frostline.systems.ti.files import load_concepts
from frostline.systems.ti.image_model import LazyTokenizer, find_image_model
from frostline.systems.ti.texts import Texts

CONCEPT_FILE = "concept.safetensors"
"""A run's trainables."""
_DEFAULT_OUT = "generated.png"


def generate_pictures(
    config: TiConfig,
    options: GenerateOptions,
    device: torch.device,
    *,
    checkpoint: Path | None,
    out: Path | None,
    note: Callable[[str], None],
) -> list[Path]:
    """Draw what is asked for: one sheet where `out` is a picture's name, with a row for each prompt; else a file each.

    Args:
        config: Says which model, and how bits are drawn.
        options: Prompts, concepts, seed.
        device: Where.
        checkpoint: A run whose concepts may be named, beside those of `options`.
        out: A picture's name, or a directory; by default ``generated.png`` in the run's directory, or here.
        note: Told what is going on.

    Raises:
        ConfigError: No prompt, or a value that cannot be used.
        CheckpointError: A concept file cannot be read, or is of another model.
        DataError: A prompt names a concept that is not given.
    """
    if not options.prompt:
        raise ConfigError("there is nothing to draw", do='give --prompt "a photo of a <s>"')
    files = [Path(name).expanduser() for name in options.concept]
    if checkpoint is not None:
        files.append(checkpoint / CONCEPT_FILE)
    model = find_image_model(config.system)
    inside = any(concept.space == "t5-input" for file in files for concept in load_concepts(file))
    encoder = model.load_text_encoder(device, dtype=torch.float32 if inside else None)
    concepts: list[Concept] = []
    for file in files:
        concepts += load_concepts(file, base_model=model.identity, text_encoder=encoder.identity, width=encoder.width)
    concepts = [concept.to(device) for concept in concepts]
    prompts = [prompt for prompt in options.prompt for _ in range(options.num)]
    with torch.no_grad():
        text = Texts.of(encoder, prompts, concepts).fetch_all(concepts)
        negative = Texts.of(encoder, [options.negative], concepts).fetch_all(concepts) if options.negative else None
    encoder.release_()
    sampling = config.system.sampling
    if options.cfg is not None:
        sampling = replace(sampling, guidance=options.cfg)
    note(f"drawing {len(prompts)} pictures of {model.image_size[0]} x {model.image_size[1]} pixels")
    drawing = Painter(
        model,
        model.load_transformer(device),
        LazyTokenizer(model, device),
        sampling=sampling,
        precision=config.training.precision,
    )
    pictures = drawing.draw(text, seed=options.seed, negative=negative)
    out = out or (checkpoint or Path()) / _DEFAULT_OUT
    if out.suffix:
        write_picture(sheet(pictures.split(options.num)), out)
        return [out]
    paths = [out / f"{number:03d}.png" for number in range(len(prompts))]
    for path, picture in zip(paths, pictures, strict=True):
        write_picture(sheet([picture[None]]), path)
    return paths
