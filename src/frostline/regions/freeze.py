"""Freeze a part of a model: no gradient for its weights, and eval mode for good."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from frostline.regions.override import find_override, override_


def freeze_(module: nn.Module) -> None:
    """Freeze a module and all inside it.

    Its parameters stop requiring gradients, and every module in it stays in eval mode through any later
    `train()`, so BatchNorm statistics, dropout and drop-path stay still. Gradients still pass through it to
    what lies before it. Modules added inside later, such as adapters, follow `train()` as usual.
    Freezing twice is freezing once.
    """
    module.requires_grad_(False)
    module.eval()
    for part in module.modules():
        if not is_frozen(part):
            override_(part, "train", _stay_in_eval)


def unfreeze_(module: nn.Module) -> None:
    """Undo `freeze_` for a module and all inside it, also where only the surrounding module was frozen.

    Its floating-point parameters require gradients; its mode stays eval until the next `train()`.
    """
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    for part in module.modules():
        guard = find_override(part, "train", _stay_in_eval)
        if guard is not None:
            guard.remove()


def is_frozen(module: nn.Module) -> bool:
    """Whether `freeze_` was called on this module or on one around it, and not undone.

    ``requires_grad_(False)`` by hand does not freeze: the modes can still change.
    """
    return find_override(module, "train", _stay_in_eval) is not None


def _stay_in_eval(inner: Callable[..., Any], mode: bool = True) -> nn.Module:
    inner(mode)  # the parts decide for themselves: each frozen one has its own guard
    module: nn.Module = inner.__self__  # type: ignore[attr-defined]
    module.training = False
    return module
