"""Activation checkpointing that a model's own code and mode cannot switch off."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten
from torch.utils.checkpoint import checkpoint

from frostline.errors import ConfigError
from frostline.ops.units import find_units
from frostline.regions import Override, find_override, override_


@dataclass(frozen=True)
class Checkpointing:
    """What `checkpoint_` installed.

    Attributes:
        units: Qualified names of the checkpointed submodules, in the model's order.
        overrides: Their changed forwards, in the same order.
    """

    units: tuple[str, ...]
    overrides: tuple[Override, ...]

    def remove(self) -> None:
        """Let every unit keep its activations again. Twice is once."""
        for override in self.overrides:
            override.remove()


def checkpoint_(model: nn.Module, units: Iterable[str | nn.Module]) -> Checkpointing:
    """Recompute some submodules in backward instead of keeping what they save.

    Works on a frozen net in eval mode, where transformers' own checkpointing is silently left out. Arguments
    and results of any kind pass through. Types, `state_dict`, copying and pickling stay as they are.

    Same as: the model without it, dropout masks and BatchNorm statistics included. An argument changed in
    place before backward raises, as without it. A unit that changes anything else, such as a key-value cache,
    does so twice: train with ``use_cache=False``.

    Proof class: ``EXACT``.

    Memory: from forward to backward a unit keeps its arguments only; in backward, one unit's activations are
    alive at a time.

    Cost: one more forward of each unit. Without grad mode, or where neither an argument nor a parameter of
    the unit requires a gradient, it is a plain call.

    Args:
        model: The model whose submodules `units` are.
        units: Qualified names, with ``*`` for any text without a dot and ``**`` for any text, or the modules.

    Returns:
        The handle whose `remove` takes it off again.

    Raises:
        ConfigError: A name or module that is not in the model, a container that is never called itself, or a
            unit inside another one, whether named now or checkpointed before.
    """
    modules, names = dict(model.named_modules()), tuple(find_units(model, units, "checkpoint"))
    _refuse(modules, names)
    return Checkpointing(names, tuple(override_(modules[name], "forward", _recompute) for name in names))


def _recompute(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    module: nn.Module = inner.__self__  # type: ignore[attr-defined]
    needed = (*tree_leaves((args, kwargs)), *module.parameters())
    if not torch.is_grad_enabled() or not any(isinstance(x, Tensor) and x.requires_grad for x in needed):
        return inner(*args, **kwargs)
    # Every tensor becomes a positional argument: only for those does torch restore the random generator of
    # their device, and notice that they were changed in place.
    leaves, structure = tree_flatten((args, kwargs), is_leaf=_is_leaf)
    return checkpoint(
        partial(_call, inner, structure),
        *leaves,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), _SameStatistics(module)),
    )


def _call(inner: Callable[..., Any], structure: TreeSpec, *leaves: Any) -> Any:
    args, kwargs = tree_unflatten(leaves, structure)
    return inner(*args, **kwargs)


def _is_leaf(value: Any) -> bool:
    # Other containers, such as key-value caches, must arrive as the very objects that were passed.
    return type(value) not in (tuple, list, dict)


class _SameStatistics(AbstractContextManager[None]):
    """Undoes what a recomputation does to BatchNorm statistics; can be entered again and again."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._saved: list[tuple[Tensor, Tensor]] = []

    def __enter__(self) -> None:
        layers = (part for part in self._module.modules() if isinstance(part, _NormBase) and part.training)
        self._saved = [(buffer, buffer.clone()) for layer in layers for buffer in layer.buffers()]

    def __exit__(self, *exception: object) -> None:
        for buffer, values in self._saved:
            buffer.copy_(values)
        self._saved = []


def _refuse(modules: dict[str, nn.Module], units: tuple[str, ...]) -> None:
    earlier = [name for name, module in modules.items() if find_override(module, "forward", _recompute)]
    for name in units:
        if name in earlier:
            raise ConfigError(f"{name!r} is checkpointed already", do="remove that checkpointing first")
    for outer in (*units, *earlier):
        parts = set(modules[outer].modules())
        for inner in (*units, *earlier):
            if inner != outer and modules[inner] in parts:
                raise ConfigError(
                    f"{inner!r} lies inside {outer!r}: checkpointed both, it would be recomputed twice",
                    do="checkpoint one of the two",
                )
