"""Every tensor a gradient may arrive at, numbered, and how far autograd gets from any other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor

from frostline.where import Line


@dataclass(slots=True, eq=False)
class Leaf:
    """A tensor a gradient may arrive at.

    Attributes:
        tensor: The tensor.
        line: The user's line where it was first met; None where it was registered beforehand.
        hidden: Whether only the graph of a tensor from before the trace leads to it.
        through: The tensor in whose graph a hidden leaf was found.
        made_in: The step in which the program made it require a gradient; -1 where that was not seen.
        used_at: The user's line that first recorded an operator on it.
        is_held: Whether an optimizer holds it, so that it trains in some phase even if it is frozen now.
        used_in: The steps whose operators read it.
    """

    tensor: Tensor
    line: Line | None = None
    hidden: bool = False
    through: ReferenceType[Tensor] | None = None
    made_in: int = -1
    used_at: Line | None = None
    is_held: bool = False
    used_in: set[int] = field(default_factory=set)

    def use_in(self, step: int) -> None:
        """An operator reads it."""
        self.used_in.add(step)


class Leaves:
    """Numbers tensors that require a gradient, and knows which of them a tensor's graph leads to."""

    def __init__(self) -> None:
        self.all: list[Leaf] = []
        self._numbers: dict[int, int] = {}
        # Notes on a graph's nodes live as long as the nodes, without keeping them or what they saved alive.
        self._key = f"frostline reach {id(self)}"

    def number(self, tensor: Tensor) -> int:
        """The number of a leaf, or -1."""
        return self._numbers.get(id(tensor), -1)

    def add(self, tensor: Tensor, leaf: Leaf | None = None) -> int:
        """Number a tensor; one that has a number keeps it."""
        number = self._numbers.get(id(tensor))
        if number is None:
            number = self._numbers[id(tensor)] = len(self.all)
            self.all.append(leaf or Leaf(tensor))
        return number

    def members(self, bits: int) -> Iterator[int]:
        """The numbers in a set."""
        while bits:
            low = bits & -bits
            yield low.bit_length() - 1
            bits ^= low

    def reach(self, tensor: Tensor) -> int:
        """The leaves autograd gets to from a tensor."""
        if not tensor.requires_grad:
            return 0
        node = graph_of(tensor)
        if node is None:
            number = self.number(tensor)
            return 0 if number < 0 else 1 << number
        return self._reach(node, tensor)

    def forget(self, tensor: Tensor) -> None:
        """Take the notes away from the graph of a tensor that outlives the trace."""
        stack: list[Any] = [graph_of(tensor)]
        while stack:
            node = stack.pop()
            if node is not None and node.metadata.pop(self._key, None) is not None:
                stack += [child for child, _ in node.next_functions]

    def _reach(self, root: Any, tensor: Tensor) -> int:
        known = root.metadata.get(self._key)
        if known is not None:
            return int(known)
        work = [[root, iter(root.next_functions), 0]]
        while True:
            node, children, bits = work[-1]
            for child, _ in children:
                if child is None:
                    continue
                if type(child).__name__ == "AccumulateGrad":
                    bits |= 1 << self._hidden(child.variable, tensor)
                    continue
                known = child.metadata.get(self._key)
                if known is None:
                    work[-1][2] = bits
                    work.append([child, iter(child.next_functions), 0])
                    break
                bits |= known
            else:
                node.metadata[self._key] = bits
                work.pop()
                if not work:
                    return int(bits)
                work[-1][2] |= bits

    def _hidden(self, variable: Tensor, tensor: Tensor) -> int:
        number = self._numbers.get(id(variable))
        if number is None:
            number = self.add(variable, Leaf(variable, hidden=True, through=ref(tensor)))
        return number


def graph_of(tensor: Tensor) -> Any:
    """A tensor's node in autograd's graph, or None.

    A view taken under no_grad has none that could be asked for, once its base was written to with a graph.
    """
    try:
        return tensor.grad_fn
    except RuntimeError:
        return None


def is_recomputing() -> bool:
    """Whether backward is running in this thread."""
    return bool(torch._C._current_graph_task_id() != -1)
