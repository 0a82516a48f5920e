"""Multi-stream ResNets whose streams run on the samples that have them.

Names load on first use: the configuration must be importable without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = [
    "FitSettings",
    "History",
    "LINet",
    "LinetConfig",
    "LinetSystem",
    "LinetSystemConfig",
    "ModalityDropout",
    "Rows",
    "Treatment",
    "build_network",
    "evaluation_report",
    "freeze_stream_",
    "load_resnet_",
    "merge_availability",
    "parameter_groups",
    "pathway_importance",
    "unfreeze_stream_",
]

if TYPE_CHECKING:
    from frostline.systems.linet.availability import ModalityDropout, merge_availability
    from frostline.systems.linet.build import build_network
    from frostline.systems.linet.compact import Rows
    from frostline.systems.linet.config import LinetConfig, LinetSystemConfig
    from frostline.systems.linet.evaluation import evaluation_report
    from frostline.systems.linet.groups import parameter_groups
    from frostline.systems.linet.history import History
    from frostline.systems.linet.importance import pathway_importance
    from frostline.systems.linet.network import LINet
    from frostline.systems.linet.pretrained import load_resnet_
    from frostline.systems.linet.settings import FitSettings
    from frostline.systems.linet.streams import freeze_stream_, unfreeze_stream_
    from frostline.systems.linet.system import LinetSystem
    from frostline.systems.linet.treatment import Treatment

_FILES = {
    "FitSettings": "settings",
    "History": "history",
    "LINet": "network",
    "LinetConfig": "config",
    "LinetSystem": "system",
    "LinetSystemConfig": "config",
    "ModalityDropout": "availability",
    "Rows": "compact",
    "Treatment": "treatment",
    "build_network": "build",
    "evaluation_report": "evaluation",
    "freeze_stream_": "streams",
    "load_resnet_": "pretrained",
    "merge_availability": "availability",
    "parameter_groups": "groups",
    "pathway_importance": "importance",
    "unfreeze_stream_": "streams",
}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)
