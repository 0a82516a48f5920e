"""Semantic communication: a trained codec and a channel in the middle of a frozen Florence-2.

Names load on first use: the configuration must be importable without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["Channel", "Receiver", "SemcomConfig", "SemcomModel", "SemcomSystem", "Transmitter", "load_backbone"]

if TYPE_CHECKING:
    from frostline.systems.semcom.backbone import load_backbone
    from frostline.systems.semcom.channel import Channel
    from frostline.systems.semcom.config import SemcomConfig
    from frostline.systems.semcom.model import SemcomModel
    from frostline.systems.semcom.receiver import Receiver
    from frostline.systems.semcom.system import SemcomSystem
    from frostline.systems.semcom.transmitter import Transmitter

_FILES = {
    "Channel": "channel",
    "Receiver": "receiver",
    "SemcomConfig": "config",
    "SemcomModel": "model",
    "SemcomSystem": "system",
    "Transmitter": "transmitter",
    "load_backbone": "backbone",
}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)
