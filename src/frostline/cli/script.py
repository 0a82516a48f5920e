"""What the verbs on a training script have in common: telling it from a configuration, its words."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from frostline.cli.request import read_request, source_of
from frostline.config import ConfigSource, RunConfig
from frostline.errors import ConfigError
from frostline.systems.registry import SYSTEMS

_END_OF_OPTIONS = "--"
_SYSTEMS = ", ".join(SYSTEMS)
TargetName = Annotated[
    str,
    Parameter(name=["--target", "--config"], help=f"A system ({_SYSTEMS}), a YAML file, or a training script (.py)."),
]
AsModule = Annotated[
    bool, Parameter(name="-m", negative="", show_default=False, help="TARGET is a module, as in python -m.")
]
SystemDevice = Annotated[
    Literal["auto", "cpu", "cuda"], Parameter(help="Of a system only: auto takes a GPU where there is one.")
]
PrintSystem = Annotated[
    bool,
    Parameter(
        negative="", show_default=False, help="Of a system only: print its resolved configuration, and do nothing."
    ),
]


def is_script(target: str, module: bool = False) -> bool:
    """Whether a target is a script or a module, and not a configuration."""
    return module or target.endswith(".py")


def keep_end_of_options(words: Sequence[str]) -> list[str]:
    """A command line whose ``--`` survives its parser, which takes one away."""
    if _END_OF_OPTIONS not in words:
        return list(words)
    at = list(words).index(_END_OF_OPTIONS)
    return [*words[:at], _END_OF_OPTIONS, *words[at:]]


def script_arguments(target: str, words: Sequence[str], verb: Callable[..., int]) -> tuple[str, ...]:
    """The script's own arguments, behind the ``--``.

    Args:
        target: The script.
        words: What no option of the verb took.
        verb: Has the options that could have been meant.

    Raises:
        ConfigError: There are words before the ``--``.
    """
    ours, theirs = _split(words)
    if ours:
        do = "write the script's own arguments behind --, and see --help for ours"
        options = [f"--{name.replace('_', '-')}" for name in inspect.signature(verb).parameters]
        meant = difflib.get_close_matches(ours[0].partition("=")[0], options, n=1)
        if meant:
            do = f"write {meant[0]}, or the script's own arguments behind --"
        raise ConfigError(f"{ours[0]!r} is none of the options before --", where=f"{target} {' '.join(ours)}", do=do)
    return theirs


def check_script_options(target: str, given: dict[str, bool]) -> None:
    """Refuse what only a system takes.

    Args:
        target: The script.
        given: By option that is for systems: whether it was given.

    Raises:
        ConfigError: One was.
    """
    options = [option for option, was_given in given.items() if was_given]
    if options:
        one = len(options) == 1
        what = f"{' and '.join(options)} {'is' if one else 'are'} for systems: a script runs as it is"
        raise ConfigError(what, where=target, do=f"leave {'it' if one else 'them'} out")


def read_system(verb: str, target: str, words: Sequence[str]) -> RunConfig:
    """Resolve a target that is no script, and the keys and values for it.

    Raises:
        ConfigError: It is neither a system nor a YAML file, a key or value cannot be used, or there are arguments for a
            script.
    """
    ours, theirs = _split(words)
    if len(ours) < len(words):
        raise ConfigError(
            "only a training script takes arguments behind --",
            where=f"{target} -- {' '.join(theirs)}".rstrip(),
            do="name a .py file, or a module with -m",
        )
    system_source(verb, target)
    return read_request(target, ours)


def system_source(verb: str, target: str) -> ConfigSource:
    """What a target that is no script holds: a YAML file's keys, or none for a system's defaults.

    Raises:
        ConfigError: It is neither.
    """
    path = Path(target)
    if target in SYSTEMS or target.endswith((".yaml", ".yml")):
        return source_of(target)
    if path.is_dir():
        raise ConfigError("the target is a directory", where=target, do="name the script (.py) in it")
    if not path.exists():
        raise ConfigError(
            f"there is no system {target!r}, nor a file of this name",
            do=f"{_meant(verb, path)}: a script ends in .py, a module takes -m, systems are {_SYSTEMS}",
        )
    if path.suffix == ".ipynb":
        do = f"export it with jupyter nbconvert --to script {target}"
        raise ConfigError("the target is a notebook, not a .py file", where=target, do=do)
    try:
        return source_of(target)
    except ConfigError as error:
        what = f"{error.what}; it is not a .py file, so it was read as YAML"
        raise ConfigError(
            what, where=error.where or target, do=f"give a script (.py), or {error.do or 'mend it'}"
        ) from None


def _meant(verb: str, path: Path) -> str:
    script, module = path.with_name(f"{path.name}.py"), Path(*str(path).split("."))
    if script.is_file():
        return f"frostline {verb} {script}"
    if module.with_suffix(".py").is_file() or module.is_dir():
        return f"frostline {verb} -m {path}"
    return "give a script, a system or a YAML file"


def _split(words: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    at = list(words).index(_END_OF_OPTIONS) if _END_OF_OPTIONS in words else len(words)
    return tuple(words[:at]), tuple(words[at + 1 :])
