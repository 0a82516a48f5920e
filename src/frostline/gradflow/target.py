"""Parameters that a probe moves: how they are found again in another run, and in which direction they go."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from frostline.gradflow.names import Names
from frostline.patches import wrapped
from frostline.tracing.operators import READ_ONLY, event_kind, is_in_place

_LEAST_SIZE = 1e-2  # of elements that are all zero, as biases and the second half of a LoRA are at first


class Target(NamedTuple):
    """A parameter to be moved.

    Attributes:
        name: Its name in a module; empty where no module holds it.
        holder: Its optimizer, counted as they are made, and its place among that optimizer's tensors; by these it is
            found again, and by its name where no optimizer holds it.
        tensor: The tensor itself, where the next run uses the same.
    """

    name: str
    holder: tuple[int, int] | None = None
    tensor: Tensor | None = None


class Movement:
    """Targets that move together in one run, each in a direction of its own and by a part of its own size.

    Args:
        targets: What moves.
        seed: Of the direction: the same in every run.
        by: How far; 0 for a run that only looks.
    """

    def __init__(self, targets: Sequence[Target], *, seed: int, by: float = 0.0) -> None:
        self.by = by
        self._targets, self._seed = targets, seed
        self._tensors = [target.tensor for target in targets]
        self._sizes: list[float | None] = [None] * len(targets)

    @property
    def is_complete(self) -> bool:
        """Whether every target was found, and moved."""
        return all(size is not None for size in self._sizes)

    @property
    def tensors(self) -> list[Tensor]:
        """The targets that were found."""
        return [tensor for tensor in self._tensors if tensor is not None]

    @property
    def waiting(self) -> list[Tensor]:
        """The targets that were found and have not moved."""
        return [t for t, size in zip(self._tensors, self._sizes, strict=True) if t is not None and size is None]

    def find(self, tensors: Mapping[str, Tensor], optimizers: Sequence[Optimizer]) -> None:
        """Look for targets by their places in optimizers, else by name."""
        for place, target in enumerate(self._targets):
            if self._tensors[place] is not None:
                continue
            if target.holder is None:
                self._tensors[place] = tensors.get(target.name)
            elif target.holder[0] < len(optimizers):
                held = [t for group in optimizers[target.holder[0]].param_groups for t in group["params"]]
                self._tensors[place] = held[target.holder[1]] if target.holder[1] < len(held) else None

    @torch.no_grad()
    def move(self, apart_from: Iterable[Tensor] = ()) -> None:
        """Move what was found and has not moved."""
        kept = {id(tensor) for tensor in apart_from}
        for place, tensor in enumerate(self._tensors):
            if tensor is None or self._sizes[place] is not None:
                continue
            size = float(tensor.detach().abs().square().mean().sqrt()) if tensor.numel() else 0.0
            self._sizes[place] = size if size > _LEAST_SIZE else _LEAST_SIZE
            if self.by and id(tensor) not in kept:
                tensor.data.add_(self._direction(place), alpha=self.by)

    @torch.no_grad()
    def along(self, values: Callable[[Tensor], Tensor | None]) -> float:
        """The inner product of the direction with something of each target's shape; None counts as zeros."""
        total = 0.0
        for place, tensor in enumerate(self._tensors):
            value = None if tensor is None or self._sizes[place] is None else values(tensor)
            if value is not None:
                plain = value.detach().to_dense() if value.is_sparse else value.detach()
                direction = self._direction(place).to(plain.dtype)
                total += float(
                    (plain.conj() * direction).real.sum() if plain.is_complex() else (plain * direction).sum()
                )
        return total

    @torch.no_grad()
    def length(self) -> float:
        """How long the direction is."""
        squares = (self._direction(place).abs().square().sum() for place in range(len(self._tensors)))
        return math.sqrt(sum(map(float, squares)))

    def _direction(self, place: int) -> Tensor:
        tensor, size = self._tensors[place], self._sizes[place]
        if tensor is None or size is None:
            return torch.zeros(())
        generator = torch.Generator().manual_seed(1_000_003 * self._seed + place)
        dtype = torch.complex128 if tensor.is_complex() else torch.float64
        return size * torch.randn(tensor.shape, generator=generator, dtype=dtype).to(tensor.device)


@contextmanager
def seeking(movements: Sequence[Movement], move: Callable[[], None]) -> Iterator[None]:
    """Find targets while a program makes and uses them, and have them moved before the first use.

    Args:
        movements: Whose targets are sought.
        move: Moves what was found.
    """
    names, optimizers = Names(), list[Optimizer]()

    def find() -> None:
        tensors = {name: tensor for name, tensor in reversed(list(names.parameters()))}
        for movement in movements:
            movement.find(tensors, optimizers)

    def look(module: nn.Module, _: Any) -> None:
        if not all(movement.is_complete for movement in movements):
            known = names.knows(module)
            if not known:
                names.discover(module)
            if not known or any(module is root for root in names.roots.values()):
                names.refresh()
            find()
            move()

    def wrap_making(original: Callable[..., Any]) -> Callable[..., Any]:
        def made(optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
            result = original(optimizer, *args, **kwargs)
            optimizers.append(optimizer)
            find()
            return result

        return made

    with ExitStack() as stack:
        stack.callback(register_module_forward_pre_hook(look).remove)
        stack.enter_context(wrapped(Optimizer, "__init__", wrap_making))
        stack.enter_context(_FirstUse(movements, move))
        yield


class _FirstUse(TorchFunctionMode):
    """Moves targets that are in no module when an operator first reads one."""

    def __init__(self, movements: Sequence[Movement], move: Callable[[], None]) -> None:
        super().__init__()
        self._movements, self._move = movements, move

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        waiting = {id(tensor) for movement in self._movements for tensor in movement.waiting}
        if waiting and func not in READ_ONLY and not is_in_place(func) and event_kind(func) == "op":
            if any(id(leaf) in waiting for leaf in tree_leaves((args, kwargs))):
                self._move()
        return func(*args, **(kwargs or {}))
