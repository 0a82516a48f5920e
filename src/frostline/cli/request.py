"""What the verbs have in common: reading a configuration, and the switches of an invocation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from frostline.config import ConfigSource, RunConfig, load_config, load_request, read_yaml
from frostline.systems.registry import SYSTEMS, config_class, generate_options

Words = Annotated[str, Parameter(show=False, allow_leading_hyphen=True)]
ConfigName = Annotated[str, Parameter(help=f"A system ({', '.join(SYSTEMS)}) or a YAML file.")]
DeviceName = Annotated[Literal["auto", "cpu", "cuda"], Parameter(help="auto takes a GPU where there is one.")]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print the record as JSON and nothing else.")]
PrintConfig = Annotated[bool, Parameter(negative="", help="Print the resolved configuration, and do nothing.")]


def read_request(name: str, words: tuple[str, ...]) -> RunConfig:
    """Resolve a system's name or a YAML file, and ``--section.key value`` words on top of it.

    Raises:
        ConfigError: A name, file, key or value that cannot be used.
    """
    source = source_of(name)
    return load_config(config_class(source.system), source, words)


def read_generation(name: str, words: tuple[str, ...]) -> tuple[RunConfig, Any]:
    """As `read_request`, and what the system's `generate` is told beside its keys; None where it is told nothing.

    Raises:
        ConfigError: A name, file, key or value that cannot be used.
    """
    source = source_of(name)
    return load_request(config_class(source.system), generate_options(source.system), source, words)


def listed(texts: Iterable[str]) -> tuple[str, ...]:
    """What an option was given, several times or separated by commas."""
    return tuple(part.strip() for text in texts for part in text.split(",") if part.strip())


def source_of(name: str) -> ConfigSource:
    """A YAML file's keys, or none for a system's defaults."""
    if name in SYSTEMS or not (name.endswith((".yaml", ".yml")) or Path(name).exists()):
        return ConfigSource(name, {})
    return read_yaml(Path(name))
