"""The systems by name. Nothing here imports torch: a system's modules load when it is built."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from frostline.config import ConfigSource, RunConfig
from frostline.errors import ConfigError, import_extra

SYSTEMS = ("semcom", "linet", "graf", "ti")
_WITH_ORIGINALS = ("graf",)


def config_class(name: str) -> type[RunConfig]:
    """The configuration class of a system, loaded without torch.

    Raises:
        ConfigError: No such system.
    """
    if name not in SYSTEMS:
        raise ConfigError(f"no system {name!r}", do=f"choose one of {', '.join(SYSTEMS)}, or give a YAML file")
    kind: type[RunConfig] = importlib.import_module(f"frostline.systems.{name}.config").CONFIG
    return kind


def generate_options(name: str) -> type[Any] | None:
    """What `generate` is told of a system beside its configuration, loaded without torch; None for nothing.

    Raises:
        ConfigError: No such system.
    """
    config_class(name)
    options: type[Any] | None = getattr(
        importlib.import_module(f"frostline.systems.{name}.config"), "GENERATE_OPTIONS", None
    )
    return options


def demo_file(name: str) -> Path:
    """The configuration that a system's demonstration runs."""
    return Path(__file__).parent / name / "demo.yaml"


def read_original(name: str, path: Path) -> tuple[ConfigSource, list[str]]:
    """A configuration of the published code that a system took over, and what to know of its keys.

    Raises:
        ConfigError: The system takes none over, or this one cannot be read.
    """
    if name not in _WITH_ORIGINALS:
        raise ConfigError(f"{name} reads no published configuration", do=f"choose one of {', '.join(_WITH_ORIGINALS)}")
    converted: tuple[ConfigSource, list[str]] = importlib.import_module(f"frostline.systems.{name}.original").convert(
        path
    )
    return converted


def system_verbs(name: str) -> Any:
    """The module of the verbs a system answers to; imports torch.

    Raises:
        MissingExtraError: A package the system needs is not installed.
    """
    return import_extra(f"frostline.systems.{name}.verbs", extra=name)
