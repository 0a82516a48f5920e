"""What the author means to happen: which parameters learn, which stay, which loss term trains what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from frostline.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Intent:
    """Declared intent, by globs over names of parameters and buffers.

    A glob matches a whole name, or a name without its first part: in a script `head.*` is `model.head.*`.

    Attributes:
        learn: What should learn; what the optimizers hold where nothing is declared.
        stay: What must not move.
        flow: By loss term: what it should train, and nothing else of what learns.
    """

    learn: tuple[str, ...] = ()
    stay: tuple[str, ...] = ()
    flow: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        learn: Iterable[str] | str = (),
        stay: Iterable[str] | str = (),
        flow: Mapping[str, Iterable[str] | str] | None = None,
    ) -> Intent:
        """An intent from globs, one or several each."""
        terms = {term: _globs(globs) for term, globs in (flow or {}).items()}
        return cls(learn=_globs(learn), stay=_globs(stay), flow=terms)

    def should_learn(self, name: str) -> bool:
        """Whether a name was declared to learn."""
        return matches(name, self.learn)

    def should_stay(self, name: str) -> bool:
        """Whether a name was declared to stay."""
        return matches(name, self.stay)


def matches(name: str, globs: Iterable[str]) -> bool:
    """Whether a glob matches a name, with or without its first part (and DistributedDataParallel's)."""
    plain = name.removeprefix("module.").replace(".module.", ".")
    names = {name, plain, plain.partition(".")[2] or plain}
    return any(fnmatchcase(candidate, glob) for glob in globs for candidate in names)


def _globs(globs: Iterable[str] | str) -> tuple[str, ...]:
    found = (globs,) if isinstance(globs, str) else tuple(globs)
    for glob in found:
        if not isinstance(glob, str):
            raise ConfigError(f"{glob!r} is not a glob", do="name parameters as 'head.*'")
    return found
