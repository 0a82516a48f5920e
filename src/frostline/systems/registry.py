"""The systems by name. Nothing here imports torch: a system's modules load when it is built."""

from __future__ import annotations

import importlib
from typing import Any

from frostline.config import RunConfig
from frostline.errors import ConfigError

SYSTEMS = ("semcom",)


def config_class(name: str) -> type[RunConfig]:
    """The configuration class of a system, loaded without torch.

    Raises:
        ConfigError: No such system.
    """
    if name not in SYSTEMS:
        raise ConfigError(
            f"no system {name!r}", do=f"choose one of {', '.join(SYSTEMS)}, or give a YAML file"
        )
    kind: type[RunConfig] = importlib.import_module(f"frostline.systems.{name}.config").CONFIG
    return kind


def system_module(name: str) -> Any:
    """The module that builds, measures, evaluates and demonstrates a system; imports torch."""
    return importlib.import_module(f"frostline.systems.{name}.system")
