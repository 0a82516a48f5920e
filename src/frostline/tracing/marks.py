"""Tie events to the tensors they made: as long as a tensor or its storage lives, and no longer than the trace."""

from __future__ import annotations

from typing import Any
from weakref import ref

import torch
from torch import Tensor

from frostline.tracing.event import Event
from frostline.tracing.leaves import Leaves

_MARK = "_frostline_event"


class Marks:
    """Remembers what made a tensor's value.

    A mark on the storage survives views, `.data` and `detach`; a mark on the tensor tells those from one another.
    """

    def __init__(self) -> None:
        self._marked: list[ref[Any]] = []

    def event_of(self, tensor: Tensor) -> Event | None:
        """What wrote a tensor's value last, as far as it is known."""
        own: Event | None = getattr(tensor, _MARK, None)
        storage = storage_of(tensor)
        shared: Event | None = getattr(storage, _MARK, None)
        if shared is not None and (own is None or shared.index > own.index):
            return shared
        return own

    def own_event_of(self, tensor: Tensor) -> Event | None:
        """What made this very tensor, be it a view."""
        event: Event | None = getattr(tensor, _MARK, None)
        return event

    def mark(self, tensor: Tensor, event: Event, *, overwrite: bool, keep: bool = False) -> None:
        """Say what made a tensor.

        Args:
            tensor: The result.
            event: What made it.
            overwrite: Whether it wrote to the storage; a view leaves the storage's writer alone.
            keep: Whether the storage is a leaf's own, which nothing makes.
        """
        setattr(tensor, _MARK, event)
        self._marked.append(ref(tensor))
        storage = storage_of(tensor)
        if storage is not None and not keep and (overwrite or getattr(storage, _MARK, None) is None):
            setattr(storage, _MARK, event)
            self._marked.append(ref(storage))

    def prune(self) -> None:
        """Let go of tensors that are gone."""
        self._marked = [reference for reference in self._marked if reference() is not None]

    def forget(self, leaves: Leaves) -> None:
        """Take every mark away, and the notes on graphs that outlive the trace."""
        for reference in self._marked:
            marked = reference()
            if marked is not None:
                vars(marked).pop(_MARK, None)
                if isinstance(marked, Tensor):
                    leaves.forget(marked)
        self._marked.clear()


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
