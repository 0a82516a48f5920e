"""What a graph keeps for backward: its nodes, and the storages they hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from frostline.tracing.marks import storage_of


def nodes_above(roots: Iterable[Any], but: set[Any] | None = None) -> set[Any]:
    """The nodes a backward pass from some nodes goes through.

    Args:
        roots: Nodes of autograd's graph.
        but: Nodes to leave out, and what only they lead to.
    """
    left_out = but or set()
    seen: set[Any] = set()
    waiting = list(roots)
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen and node not in left_out:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return seen


def leaves_under(nodes: Iterable[Any]) -> Iterator[Tensor]:
    """The leaves that a node of some sends a gradient to directly."""
    for node in nodes:
        for following, _ in node.next_functions:
            if type(following).__name__ == "AccumulateGrad":
                yield following.variable


def kept_by(nodes: Iterable[Any]) -> dict[int, torch.UntypedStorage]:
    """The storages some nodes hold, by identity; what a hook has packed away is not among them."""
    storages = (storage_of(tensor) for node in nodes for tensor in _saved(node))
    return {storage._cdata: storage for storage in storages if storage is not None}


def _saved(node: Any) -> Iterator[Tensor]:
    for name in dir(type(node)):
        if name.startswith("_raw_saved"):
            found = getattr(node, name)
            for saved in found if isinstance(found, (tuple, list)) else (found,):
                packed = getattr(saved, "data", None)  # torch 2.6 does not show it
                if isinstance(packed, Tensor):
                    yield packed
