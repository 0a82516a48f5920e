"""What trains and what is frozen, in which mode, and how to leave a model as it was."""

from frostline.regions.freeze import freeze_, is_frozen, unfreeze_
from frostline.regions.override import Override, find_override, override_
from frostline.regions.preserve import optimizers_of, preserved
from frostline.regions.rehearsal import SCALER_METHODS, rehearsal
from frostline.regions.state import (
    load_trainable_state_,
    trainable_parameters,
    trainable_state,
)

__all__ = [
    "SCALER_METHODS",
    "Override",
    "find_override",
    "freeze_",
    "is_frozen",
    "load_trainable_state_",
    "optimizers_of",
    "override_",
    "preserved",
    "rehearsal",
    "trainable_parameters",
    "trainable_state",
    "unfreeze_",
]
