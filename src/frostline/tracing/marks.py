"""Tie events to the tensors they made: as long as a tensor or its storage lives, and no longer than the trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from frostline.tracing.event import Event
from frostline.tracing.leaves import Leaves

_Table = dict[int, tuple[ref[Any], Event]]


class Marks:
    """Remembers what made a tensor's value.

    A mark on the storage survives views, `.data` and `detach`; a mark on the tensor tells those from one another.
    Marks lie beside the tensors, not on them: a tensor's own attributes would be copied and saved with it.
    """

    def __init__(self) -> None:
        self._tensors: _Table = {}
        self._storages: _Table = {}

    def event_of(self, tensor: Tensor) -> Event | None:
        """What wrote a tensor's value last, as far as it is known."""
        own = self._tensors.get(id(tensor))
        shared = self._storages.get(storage_key(tensor) or 0) if self._storages else None
        if shared is not None and (own is None or shared[1].index > own[1].index):
            return shared[1]
        return None if own is None else own[1]

    def own_event_of(self, tensor: Tensor) -> Event | None:
        """What made this very tensor, be it a view."""
        own = self._tensors.get(id(tensor))
        return None if own is None else own[1]

    def living(self) -> Iterator[tuple[Tensor, Event]]:
        """The marked tensors that somebody holds, autograd too, and what made each."""
        for reference, event in list(self._tensors.values()):
            tensor = reference()
            if tensor is not None:
                yield tensor, event

    def mark(self, tensor: Tensor, event: Event, *, overwrite: bool, keep: bool = False) -> None:
        """Say what made a tensor.

        Args:
            tensor: The result.
            event: What made it.
            overwrite: Whether it wrote to the storage; a view leaves the storage's writer alone.
            keep: Whether the storage is a leaf's own, which nothing makes.
        """
        _put(self._tensors, id(tensor), tensor, event)
        storage = None if keep else storage_of(tensor)
        if storage is not None and (overwrite or storage._cdata not in self._storages):
            _put(self._storages, storage._cdata, storage, event)

    def forget(self, leaves: Leaves) -> None:
        """Forget every mark, and take the notes off graphs that outlive the trace."""
        for reference, _ in list(self._tensors.values()):
            tensor = reference()
            if tensor is not None:
                leaves.forget(tensor)
        self._tensors.clear()
        self._storages.clear()


def storage_key(tensor: Tensor) -> int | None:
    """A number two living tensors share where they share a storage; None where there is none."""
    storage = storage_of(tensor)
    return None if storage is None else storage._cdata


def storage_of(tensor: Tensor) -> torch.UntypedStorage | None:
    """A tensor's storage; None for sparse tensors and torch.func's wrappers."""
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return None


def _put(table: _Table, key: int, marked: Any, event: Event) -> None:
    table[key] = ref(marked, _remover(table, key)), event


def _remover(table: _Table, key: int) -> Callable[[ref[Any]], None]:
    def remove(gone: ref[Any]) -> None:
        known = table.get(key)
        if known is not None and known[0] is gone:  # the number may serve another tensor already
            del table[key]

    return remove
