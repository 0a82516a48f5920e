"""Train the small part of a big model, in the memory you have, with the same gradients.

Names load on first use, so that ``import frostline`` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

_ROOMS = {
    "Workload": "memory",
    "checkpoint_": "ops",
    "chunked_cross_entropy": "ops",
    "chunked_map": "ops",
    "FeatureCache": "ops",
    "compare_gradients": "proof",
    "estimate": "memory",
    "evaluate": "workflow",
    "freeze_": "regions",
    "measure": "memory",
    "train": "workflow",
    "unfreeze_": "regions",
}

__all__ = ["__version__", *sorted(_ROOMS)]  # noqa: PLE0604

if TYPE_CHECKING:
    from frostline.memory import Workload, estimate, measure
    from frostline.ops import FeatureCache, checkpoint_, chunked_cross_entropy, chunked_map
    from frostline.proof import compare_gradients
    from frostline.regions import freeze_, unfreeze_
    from frostline.workflow import evaluate, train


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'frostline' has no attribute {name!r}")
    return getattr(importlib.import_module(f"frostline.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
