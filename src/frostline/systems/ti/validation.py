"""Pictures to look at while a concept is learned: its loss hardly moves, so the loss is no sign of progress."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from frostline.scenes import THING_BACKGROUNDS, THING_COLOURS
from frostline.systems.ti.config import TiConfig
from frostline.systems.ti.drawing import Painter, sheet, write_picture

if TYPE_CHECKING:
    from frostline.systems.ti.system import TiSystem

_PHOTO = ("a photo of a {}", "a close photo of a {}", "a dark photo of a {}", "a painting in the style of {}")
_SIDE = 640


def validation_prompts(config: TiConfig, placeholder: str) -> tuple[str, ...]:
    """What a concept is drawn as: the configured prompts, or every colour on every background, or a few photos."""
    templates = config.system.validation.prompts
    if not templates and config.data.kind == "things":
        templates = tuple(f"a {colour} {{}} on {ground}" for ground in THING_BACKGROUNDS for colour in THING_COLOURS)
    return tuple(template.replace("{}", placeholder) for template in templates or _PHOTO)


class Reviewer:
    """Writes a sheet of pictures when one is due: a row for each concept and repetition, the seed always the same.

    The image tokenizer is loaded for it, and let go again if it was not there; prompts were encoded before.

    Args:
        system: Being trained.
        directory: The run's own.
    """

    def __init__(self, system: TiSystem, directory: Path) -> None:
        self._system, self._directory = system, directory

    @torch.no_grad()
    def review(self, step: int) -> Path | None:
        """The sheet behind so many steps, if one is due; the last step has one."""
        config = self._system.config
        every = config.system.validation.every
        if not every or (step % every and step != config.training.num_steps):
            return None
        path = self._directory / "samples" / f"step-{step:06d}.png"
        held = self._system.tokenizer.is_loaded
        text = self._system.validation_texts.fetch_all(self._system.concepts)
        drawing = painter(self._system)
        settings = config.system.validation
        per_concept = len(text.lengths) // len(self._system.concepts)
        drawn = [drawing.draw(text, seed=settings.seed + number) for number in range(settings.num_pictures)]
        if not held:
            self._system.tokenizer.release_()
        rows = [pictures.split(per_concept) for pictures in drawn]
        write_picture(sheet([row for concept in zip(*rows, strict=True) for row in concept]), path, least_side=_SIDE)
        return path


def painter(system: TiSystem) -> Painter:
    """Draws with a system's own parts."""
    return Painter(
        system.image_model,
        system.model.transformer,
        system.tokenizer,
        sampling=system.config.system.sampling,
        precision=system.config.training.precision,
    )
