"""Train the small part of a big model, in the memory you have, with the same gradients.

Names load on first use, so that ``import frostline`` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

__all__ = [
    "FeatureCache",
    "Workload",
    "__version__",
    "apply_",
    "assert_gradients_flow",
    "audit",
    "auditing",
    "backward_in_micro_batches",
    "checkpoint_",
    "chunked_cross_entropy",
    "chunked_map",
    "compare_gradients",
    "compress_",
    "estimate",
    "evaluate",
    "fake_tensors",
    "freeze_",
    "largest_batch",
    "lean_",
    "measure",
    "offload_",
    "plan",
    "prove",
    "store_bfloat16_",
    "train",
    "unfreeze_",
]

if TYPE_CHECKING:
    from frostline.gradflow import assert_gradients_flow, audit, auditing
    from frostline.memory import Workload, estimate, measure
    from frostline.ops import (
        FeatureCache,
        backward_in_micro_batches,
        checkpoint_,
        chunked_cross_entropy,
        chunked_map,
        compress_,
        lean_,
        offload_,
        store_bfloat16_,
    )
    from frostline.planner import apply_, largest_batch, plan, prove
    from frostline.proof import compare_gradients
    from frostline.regions import freeze_, unfreeze_
    from frostline.tracing import fake_tensors
    from frostline.workflow import evaluate, train


_ROOMS = {
    "gradflow": ("assert_gradients_flow", "audit", "auditing"),
    "memory": ("Workload", "estimate", "measure"),
    "ops": (
        "FeatureCache",
        "backward_in_micro_batches",
        "checkpoint_",
        "chunked_cross_entropy",
        "chunked_map",
        "compress_",
        "lean_",
        "offload_",
        "store_bfloat16_",
    ),
    "planner": ("apply_", "largest_batch", "plan", "prove"),
    "proof": ("compare_gradients",),
    "regions": ("freeze_", "unfreeze_"),
    "tracing": ("fake_tensors",),
    "workflow": ("evaluate", "train"),
}


def __getattr__(name: str) -> Any:
    for room, names in _ROOMS.items():
        if name in names:
            return getattr(importlib.import_module(f"frostline.{room}"), name)
    raise AttributeError(f"module 'frostline' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
