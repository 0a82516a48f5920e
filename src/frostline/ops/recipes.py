"""Tensors that are cheap to make again are not kept for backward: their recipe is."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from frostline.errors import StepError
from frostline.tracing.versions import alias_without_memory, refuse_changed

Take = Callable[[], Any]


class Recipes:
    """What to do instead of keeping a tensor: while this is entered, autograd keeps recipes where it has them.

    Autograd's own formulas stay as they are; only what is stored between forward and backward changes. An argument
    that has a recipe itself is made from that, down to what is kept. A tensor that several saved it is made once
    and held until the last of them has read it.

    Same as: the forward without it, provided that a recipe makes the same tensor again: the same kernels on the
    same values, without random numbers, and without side effects such as running statistics.

    Proof class: ``EXACT`` where the recipes are.

    Memory: a tensor with a recipe is freed with its last use in forward; the arguments of its recipe are kept.

    Cost: each recipe runs once in backward.

    Keeps what autograd promises: a kept tensor, an argument or the tensor itself changed in place before backward
    raises. Other saved-tensor hooks around it get what it keeps. It does nothing without grad mode, under
    ``torch.compile`` and inside `torch.utils.checkpoint`, which keeps nothing anyway.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[_Recipe, weakref.ref[torch.UntypedStorage]]] = {}
        self._hooks: saved_tensors_hooks | None = None
        self._outer: tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]] | None = None

    def __enter__(self) -> Recipes:
        """Start to pack recipes."""
        outer = torch._C._autograd._top_saved_tensors_default_hooks(False)
        if _records_plainly(outer):
            # Only the innermost hooks are called: what this keeps goes to the next ones.
            self._outer = outer
            self._hooks = saved_tensors_hooks(self._pack, _unpack)
            self._hooks.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        """Stop; what was packed lives on with the graph."""
        hooks, self._hooks = self._hooks, None
        self._known.clear()
        if hooks is not None:
            hooks.__exit__(*exception)

    def add(self, tensor: Tensor, make: Callable[..., Tensor], *arguments: Any) -> None:
        """Remember how to make a tensor.

        Args:
            tensor: Before autograd saves it. It may still be changed in place until then, as a normalisation's
                output by a ReLU: `make` returns what is saved.
            make: Called as ``make(*arguments)`` in backward, under `no_grad` and the autocast of this moment; it
                holds no large tensor itself.
            arguments: Tensors, with or without recipes, and anything else.
        """
        if self._hooks is None:
            return
        taken = [self._argument(argument) for argument in arguments]
        storage = tensor.untyped_storage()
        key = storage._cdata
        recipe = _Recipe(partial(_make, make, taken, _autocast_of(tensor)), tensor)
        self._known[key] = recipe, weakref.ref(storage, partial(_forget, weakref.ref(self), key))

    def _argument(self, argument: Any) -> Take:
        if not isinstance(argument, Tensor):
            return lambda: argument
        recipe = self._find(argument)
        return self._keep(argument) if recipe is None else recipe.expect(argument)

    def _find(self, tensor: Tensor) -> _Recipe | None:
        entry = self._known.get(tensor.untyped_storage()._cdata) if tensor.layout is torch.strided else None
        return None if entry is None else entry[0]

    def _pack(self, tensor: Tensor) -> Take:
        recipe = self._find(tensor)
        return self._keep(tensor) if recipe is None else recipe.expect(tensor)

    def _keep(self, tensor: Tensor) -> Take:
        if self._outer is not None:
            packed, unpack = self._outer[0](tensor), self._outer[1]
            return lambda: unpack(packed)
        # An operator's own output, kept as it is, would keep its graph alive in a reference cycle.
        kept, version = tensor.detach(), tensor._version

        def take() -> Tensor:
            refuse_changed(kept, version, kept.shape)
            return kept

        return take


class _Recipe:
    """How to make one storage again; it is held while reads of it are still expected."""

    def __init__(self, make: Callable[[], Tensor], tensor: Tensor) -> None:
        self._make = make
        self._shape, self._strides, self._dtype = tensor.shape, tensor.stride(), tensor.dtype
        self._num_reads = self._num_left = 0
        self._made: Tensor | None = None

    def expect(self, tensor: Tensor) -> Take:
        """One more read, of the storage as `tensor` sees it now."""
        self._num_reads += 1
        self._num_left += 1
        alias, version = alias_without_memory(tensor), tensor._version
        shape, strides, offset = tensor.shape, tensor.stride(), tensor.storage_offset()

        def take() -> Tensor:
            refuse_changed(alias, version, shape)
            made = self._read()
            if (shape, strides) == (made.shape, made.stride()):
                return made
            return torch.as_strided(made, shape, strides, offset)

        return take

    def _read(self) -> Tensor:
        made = self._make() if self._made is None else self._made
        if (made.shape, made.stride(), made.dtype) != (self._shape, self._strides, self._dtype):
            raise StepError(
                f"a recipe made a tensor of shape {tuple(made.shape)}, strides {made.stride()} and {made.dtype} where"
                f" {tuple(self._shape)}, {self._strides} and {self._dtype} was dropped",
                do="make it with the operators that made it in forward",
            )
        self._num_left -= 1
        self._made = made if self._num_left > 0 else None
        if self._num_left <= 0:
            self._num_left = self._num_reads  # a second backward through a retained graph
        return made


def _make(make: Callable[..., Tensor], arguments: list[Take], autocast: Callable[[], Any]) -> Tensor:
    with torch.no_grad(), autocast():
        return make(*[argument() for argument in arguments])


def _unpack(take: Take) -> Tensor:
    tensor: Tensor = take()
    return tensor


def _forget(recipes: weakref.ref[Recipes], key: int, reference: object) -> None:
    owner = recipes()
    # A new storage may have the same address, and a recipe of its own.
    if owner is not None and key in owner._known and owner._known[key][1] is reference:
        del owner._known[key]


def _autocast_of(tensor: Tensor) -> Callable[[], Any]:
    kind = tensor.device.type
    enabled = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if enabled else None
    return partial(torch.autocast, kind, dtype, enabled)


def _records_plainly(outer: Any) -> bool:
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
        and not torch._C._are_functorch_transforms_active()
        and (outer is None or outer[0].__module__ != "torch.utils.checkpoint")
    )
