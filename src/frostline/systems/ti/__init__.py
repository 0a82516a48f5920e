"""Textual inversion: new words for the frozen bitwise autoregressive image model Infinity.

Names load on first use: the configuration must be importable without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = [
    "Concept",
    "GenerateOptions",
    "ImageModel",
    "Painter",
    "TextEncoder",
    "Texts",
    "TiConfig",
    "TiModel",
    "TiSystem",
    "concept_optimizer",
    "find_image_model",
    "import_concept",
    "load_concepts",
    "save_concepts",
]

if TYPE_CHECKING:
    from frostline.systems.ti.concept import Concept, concept_optimizer
    from frostline.systems.ti.config import GenerateOptions, TiConfig
    from frostline.systems.ti.drawing import Painter
    from frostline.systems.ti.files import load_concepts, save_concepts
    from frostline.systems.ti.image_model import ImageModel, find_image_model
    from frostline.systems.ti.interchange import import_concept
    from frostline.systems.ti.model import TiModel
    from frostline.systems.ti.system import TiSystem
    from frostline.systems.ti.text_encoder import TextEncoder
    from frostline.systems.ti.texts import Texts

_FILES = {
    "Concept": "concept",
    "GenerateOptions": "config",
    "ImageModel": "image_model",
    "Painter": "drawing",
    "TextEncoder": "text_encoder",
    "Texts": "texts",
    "TiConfig": "config",
    "TiModel": "model",
    "TiSystem": "system",
    "concept_optimizer": "concept",
    "find_image_model": "image_model",
    "import_concept": "interchange",
    "load_concepts": "files",
    "save_concepts": "files",
}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)
