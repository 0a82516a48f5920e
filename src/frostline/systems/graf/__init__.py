"""A conditional radiance-field GAN with a super-resolution head, on whole images in constant memory.

Names load on first use: the configuration must be importable without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = [
    "Camera",
    "Discriminator",
    "Draw",
    "Generator",
    "GrafConfig",
    "GrafModel",
    "GrafSystem",
    "GrafSystemConfig",
    "Patch",
    "Photographs",
    "Poses",
    "Rendering",
    "average_of",
    "build_discriminator",
    "discriminator_loss",
    "generator_loss",
    "update_average_",
]

if TYPE_CHECKING:
    from frostline.systems.graf.camera import Camera, Poses
    from frostline.systems.graf.config import GrafConfig, GrafSystemConfig
    from frostline.systems.graf.discriminator import Discriminator
    from frostline.systems.graf.ema import average_of, update_average_
    from frostline.systems.graf.generator import Draw, Generator, Rendering
    from frostline.systems.graf.model import GrafModel
    from frostline.systems.graf.objective import (
        Photographs,
        build_discriminator,
        discriminator_loss,
        generator_loss,
    )
    from frostline.systems.graf.rays import Patch
    from frostline.systems.graf.system import GrafSystem

_FILES = {
    "Camera": "camera",
    "Discriminator": "discriminator",
    "Draw": "generator",
    "Generator": "generator",
    "GrafConfig": "config",
    "GrafModel": "model",
    "GrafSystem": "system",
    "GrafSystemConfig": "config",
    "Patch": "rays",
    "Photographs": "objective",
    "Poses": "camera",
    "Rendering": "generator",
    "average_of": "ema",
    "build_discriminator": "objective",
    "discriminator_loss": "objective",
    "generator_loss": "objective",
    "update_average_": "ema",
}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)
