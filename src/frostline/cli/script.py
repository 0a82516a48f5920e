"""What the verbs on a training script have in common: telling it from a configuration, its words, its end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from frostline.cli.screen import INTERRUPTED
from frostline.errors import ConfigError
from frostline.systems.registry import SYSTEMS

if TYPE_CHECKING:
    from frostline.workflow.script import ScriptEnd

_END_OF_OPTIONS = "--"
TargetName = Annotated[
    str,
    Parameter(
        name=["--target", "--config"], help=f"A system ({', '.join(SYSTEMS)}), a YAML file, or a training script (.py)."
    ),
]
AsModule = Annotated[bool, Parameter(name="-m", negative="", help="TARGET is a module, as in python -m.")]


def is_script(target: str, module: bool = False) -> bool:
    """Whether a target is a script or a module, and not a configuration."""
    return module or target.endswith(".py")


def keep_end_of_options(words: Sequence[str]) -> list[str]:
    """A command line whose ``--`` survives its parser, which takes one away."""
    if _END_OF_OPTIONS not in words:
        return list(words)
    at = list(words).index(_END_OF_OPTIONS)
    return [*words[:at], _END_OF_OPTIONS, *words[at:]]


def script_arguments(target: str, words: Sequence[str]) -> tuple[str, ...]:
    """The script's own arguments, behind the ``--``.

    Raises:
        ConfigError: There are words before it that no option of ours takes.
    """
    ours, theirs = _split(words)
    if ours:
        raise ConfigError(
            f"{ours[0]!r} is none of the options before --",
            where=f"{target} {' '.join(ours)}",
            do="write the script's own arguments behind --, and see --help for ours",
        )
    return theirs


def config_words(target: str, words: Sequence[str]) -> tuple[str, ...]:
    """The keys and values for a configuration.

    Raises:
        ConfigError: There are arguments for a script.
    """
    ours, theirs = _split(words)
    if len(ours) < len(words):
        raise ConfigError(
            "only a training script takes arguments behind --",
            where=f"{target} -- {' '.join(theirs)}".rstrip(),
            do="name a .py file, or a module with -m",
        )
    return ours


def exit_code_of(end: ScriptEnd, done: str) -> int:
    """Ours, after a script has ended; one that is not 0 is explained on standard error.

    Args:
        end: How it ended.
        done: What was done with it until then.
    """
    if end.reason == "interrupted":
        sys.stderr.write("frostline: interrupted; nothing is reported\n")
        return INTERRUPTED
    if end.exit_code:
        sys.stderr.write(f"frostline: the script {end.reason} with exit code {end.exit_code}; {done} until then\n")
        return 2
    return 0


def _split(words: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    at = list(words).index(_END_OF_OPTIONS) if _END_OF_OPTIONS in words else len(words)
    return tuple(words[:at]), tuple(words[at + 1 :])
