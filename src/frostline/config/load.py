"""Defaults < YAML file < command line, read by cyclopts; and back to YAML."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Dict

from frostline.config.sections import RunConfig
from frostline.errors import ConfigError

Config = TypeVar("Config", bound=RunConfig)
Options = TypeVar("Options")


@dataclass(frozen=True)
class ConfigSource:
    """A YAML document and where it came from; empty for a system's defaults."""

    system: str
    document: dict[str, Any]
    path: str = ""


def read_yaml(path: Path) -> ConfigSource:
    """Read a configuration file; its ``name`` key says which system it is for.

    Raises:
        ConfigError: No such file, not text, not YAML, a key twice, or no ``name``.
    """
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration: {error.strerror}", where=str(path)) from None
    except (UnicodeDecodeError, yaml.reader.ReaderError) as error:
        raise ConfigError(f"the configuration is not UTF-8 text: {error.reason}", where=str(path)) from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(error.problem or "not YAML", where=f"{path}{line}") from None
    if not isinstance(document, dict) or not isinstance(document.get("name"), str):
        raise ConfigError("the configuration names no system", where=str(path), do="add a line such as 'name: semcom'")
    name = document.pop("name")
    for section, keys in document.items():
        if not isinstance(keys, dict):
            raise ConfigError(
                f"{section!r} must hold keys and values, not {keys!r}",
                where=str(path),
                do=f"write '{section}:' and its keys indented below it",
            )
    return ConfigSource(name, document, str(path))


def load_config(kind: type[Config], source: ConfigSource, arguments: Sequence[str] = ()) -> Config:
    """Build a configuration from its defaults, a file's keys and ``--section.key value`` arguments.

    Raises:
        ConfigError: An unknown key, a value of the wrong type, or words left over.
    """
    config, _ = load_request(kind, None, source, arguments)
    return config


def load_request(
    kind: type[Config], options: type[Options] | None, source: ConfigSource, arguments: Sequence[str] = ()
) -> tuple[Config, Options | None]:
    """As `load_config`, and beside the keys what a verb of one system alone is told.

    Args:
        kind: Of the configuration.
        options: A dataclass whose fields are ``--words``; None for none.
        source: A file's keys.
        arguments: Words of both.
    """
    app = config_app(kind, source, options=options)
    try:
        config, given = app(list(arguments), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        text = str(error).rstrip(".")
        raise ConfigError(text, where="" if source.path in text else source.path) from None
    assert isinstance(config, kind)
    return config, given


def config_app(
    kind: Callable[[], RunConfig], source: ConfigSource, name: str = "", *, options: type[Any] | None = None
) -> App:
    """The cyclopts app whose only job is to return configuration and options; its help lists every key."""
    app = App(
        name=name or source.system,
        help="",
        config=[Dict(source.document, source=source.path)] if source.document else [],
        help_flags=[],
        version_flags=[],
        result_action="return_value",
        help_format="plaintext",
    )

    def build(*, config: RunConfig) -> tuple[RunConfig, None]:
        return config, None

    def build_both(*, options: Any, config: RunConfig) -> tuple[RunConfig, Any]:
        return config, options

    function = build if options is None else build_both
    function.__annotations__["config"] = Annotated[kind, Parameter(name="*")]
    function.__kwdefaults__ = {"config": kind()}
    if options is not None:
        function.__annotations__["options"] = Annotated[options, Parameter(name="*")]
        function.__kwdefaults__["options"] = options()
    app.default(function)
    return app


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML that `read_yaml` and `load_config` take back unchanged."""
    document = {"name": config.SYSTEM, **_lists(dataclasses.asdict(config))}
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice."""


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: list[Any] = []  # a key may be unhashable, which `construct_mapping` refuses in words
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", key_node.start_mark)
        seen.append(key)
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
