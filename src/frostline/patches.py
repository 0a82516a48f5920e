"""Put a wrapper round somebody else's function, for a while."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def wrapped(owner: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Replace an attribute of a class or module by its wrapper, and put it back.

    Args:
        owner: The class or module.
        name: Of a function; a class may have inherited it.
        wrap: Makes the replacement from the original.
    """
    own = name in vars(owner)
    original = vars(owner)[name] if own else getattr(owner, name)
    setattr(owner, name, wrap(original))
    try:
        yield
    finally:
        if own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)


@contextmanager
def unwarned(message: str) -> Iterator[None]:
    """Keep one warning quiet, and leave alone what the program does to all others meanwhile.

    Args:
        message: How it begins.
    """
    entry = ("ignore", re.compile(re.escape(message)), Warning, None, 0)
    warnings.filters.insert(0, entry)  # type: ignore[attr-defined]
    warnings._filters_mutated()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        with suppress(ValueError):
            warnings.filters.remove(entry)  # type: ignore[attr-defined]
        warnings._filters_mutated()  # type: ignore[attr-defined]
