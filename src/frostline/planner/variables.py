"""The variables that a step's function reaches: what a trial run without values may have written there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

_DEPTH = 8
_MANY = 1000
"""Things of one container that are looked into: a list of files holds no tensors."""
_CLOSED = (Tensor, nn.Module, torch.optim.Optimizer, type, ModuleType)


@contextmanager
def no_fakes_kept(step: Callable[[], object]) -> Iterator[None]:
    """Put back each variable that holds a tensor without values afterwards, such as a running mean of the loss.

    Looked through are closures, the globals that are named, attributes of plain objects, and lists and dictionaries in
    them. Modules and optimizers are looked after elsewhere.
    """
    kept: list[_Variables] = []
    _keep(step, kept, set(), _DEPTH)
    try:
        yield
    finally:
        for each in kept:
            if holds_fake(each.values()):
                each.put_back()


def holds_fake(value: Any) -> bool:
    """Whether a tensor without values is in a container, or an attribute of something in it."""
    leaves = tree_leaves(list(value) if isinstance(value, deque) else value)
    return any(isinstance(leaf, FakeTensor) or _has_fake(leaf) for leaf in leaves)


def _has_fake(leaf: object) -> bool:
    if isinstance(leaf, deque):
        return holds_fake(leaf)
    if isinstance(leaf, _CLOSED):
        return False
    return any(isinstance(value, FakeTensor) for value in getattr(leaf, "__dict__", {}).values())


@dataclass(frozen=True)
class _Variables:
    """A cell, a list or a dictionary, and what was in it.

    Attributes:
        place: The thing itself.
        before: Its contents.
        names: Of the keys that count; empty for all.
    """

    place: Any
    before: Any
    names: frozenset[str] = frozenset()

    def values(self) -> list[Any]:
        """What is there now."""
        now = _contents(self.place)
        return [now[name] for name in self.names if name in now] if self.names else [now]

    def put_back(self) -> None:
        """Make it what it was."""
        if isinstance(self.place, CellType):
            self.place.cell_contents = self.before[0]
        elif self.names:
            self.place.update(self.before)
            for name in self.names - set(self.before):
                if holds_fake(self.place.get(name)):
                    del self.place[name]
        else:
            self.place.clear()
            self.place.update(self.before) if isinstance(self.place, dict) else self.place.extend(self.before)


def _contents(place: Any) -> Any:
    if isinstance(place, CellType):
        try:
            return [place.cell_contents]
        except ValueError:  # not set yet
            return []
    return dict(place) if isinstance(place, dict) else list(place)


def _keep(value: Any, kept: list[_Variables], seen: set[int], depth: int) -> None:
    if not depth or id(value) in seen or isinstance(value, _CLOSED):
        return
    seen.add(id(value))
    if isinstance(value, FunctionType):
        names, known = frozenset(_names(value.__code__)), value.__globals__
        kept.append(_Variables(known, {name: known[name] for name in names if name in known}, names))
        kept += [_Variables(cell, _contents(cell)) for cell in value.__closure__ or () if _contents(cell)]
        inner: Iterable[Any] = (
            *(item for cell in value.__closure__ or () for item in _contents(cell)),
            *(known[name] for name in names if name in known and _is_own(value, known[name])),
        )
    elif isinstance(value, MethodType):
        inner = (value.__self__, value.__func__)
    elif isinstance(value, partial):
        inner = (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, (dict, list, deque)):
        kept.append(_Variables(value, _contents(value)))
        inner = value.values() if isinstance(value, dict) else value
    elif isinstance(value, (tuple, set, frozenset)):
        inner = value
    else:
        inner = (vars(value),) if hasattr(value, "__dict__") else ()
    for item in islice(tuple(inner), _MANY):
        _keep(item, kept, seen, depth - 1)


def _names(code: CodeType) -> Iterator[str]:
    """Of globals that a function and those inside it may use."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _is_own(function: FunctionType, value: Any) -> bool:
    """Whether to look inside a global: a library's function has nothing of the step."""
    return not isinstance(value, FunctionType) or value.__globals__ is function.__globals__
