"""Multi-stream ResNets whose streams run on the samples that have them.

Names load on first use: the configuration must be importable without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["LINet", "LinetSystemConfig", "ModalityDropout", "Rows", "Treatment", "build_network", "merge_availability"]

if TYPE_CHECKING:
    from frostline.systems.linet.availability import ModalityDropout, merge_availability
    from frostline.systems.linet.build import build_network
    from frostline.systems.linet.compact import Rows
    from frostline.systems.linet.config import LinetSystemConfig
    from frostline.systems.linet.network import LINet
    from frostline.systems.linet.treatment import Treatment

_FILES = {
    "LINet": "network",
    "LinetSystemConfig": "config",
    "ModalityDropout": "availability",
    "Rows": "compact",
    "Treatment": "treatment",
    "build_network": "build",
    "merge_availability": "availability",
}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)
