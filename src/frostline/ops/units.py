"""Find the submodules that a treatment is asked to take."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from torch import nn

from frostline.errors import ConfigError


def find_units(model: nn.Module, units: Iterable[str | nn.Module], treatment: str) -> dict[str, nn.Module]:
    """The chosen submodules by qualified name, each once, in the model's order.

    Args:
        model: The model whose submodules `units` are.
        units: Qualified names, with ``*`` for any text without a dot and ``**`` for any text, or the modules.
        treatment: A verb for the error texts, such as ``"checkpoint"``.

    Raises:
        ConfigError: A name or module that is not in the model, or a container that is never called itself.
    """
    chosen = {module for unit in units for module in _matching(model, unit, treatment)}
    found = {name: module for name, module in model.named_modules() if module in chosen}
    for name, module in found.items():
        if type(module).forward is nn.Module.forward:
            raise ConfigError(
                f"{name!r} is a {type(module).__name__}, which is never called itself",
                do=f"name what it holds: '{name}.*'",
            )
    return found


def _matching(model: nn.Module, unit: str | nn.Module, treatment: str) -> list[nn.Module]:
    if isinstance(unit, nn.Module):
        found = [module for module in model.modules() if module is unit]
        if not found:
            raise ConfigError(f"the {type(unit).__name__} to {treatment} is not in the model")
        return found
    modules = dict(model.named_modules(remove_duplicate=False))
    pattern = re.compile(re.escape(unit).replace(r"\*\*", ".+").replace(r"\*", "[^.]+"))
    found = [module for name, module in modules.items() if pattern.fullmatch(name)]
    if not found:
        nearest = difflib.get_close_matches(unit, filter(None, modules), n=3, cutoff=0.0)
        raise ConfigError(f"no module of the model is called {unit!r}", do=f"nearest: {', '.join(nearest)}")
    return found
