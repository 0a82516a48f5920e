"""Names for modules, parameters and loss terms: the model's own, or those the program's variables give them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import takewhile
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from frostline.tracing import Leaf
from frostline.where import is_library


class Names:
    """Knows every module that was given or met, and what it and its tensors are called."""

    def __init__(self) -> None:
        self.roots: dict[str, nn.Module] = {}
        self._modules: dict[int, str] = {}
        self._tensors: dict[int, tuple[Tensor, str]] = {}
        self._once_registered: set[int] = set()

    def add_module(self, module: nn.Module, name: str = "") -> None:
        """Name a module and everything inside it; a second module of a name gets a number."""
        base, number = name, 1
        while name in self.roots and self.roots[name] is not module:
            number += 1
            name = f"{base or type(module).__name__}{number}"
        self.roots[name] = module
        self.refresh()

    def add_tensor(self, tensor: Tensor, name: str) -> None:
        """Name a tensor that is in no module."""
        self._tensors[id(tensor)] = tensor, name

    def refresh(self) -> None:
        """Read the modules again: a program may have replaced parts of them."""
        for name, root in self.roots.items():
            for inner, module in root.named_modules():
                self._modules.setdefault(id(module), _join(name, inner))
            for inner, tensor in (*root.named_parameters(), *root.named_buffers()):
                self._tensors.setdefault(id(tensor), (tensor, _join(name, inner)))
                self._once_registered.add(id(tensor))

    def knows(self, module: nn.Module) -> bool:
        """Whether the module has a name."""
        return id(module) in self._modules

    def discover(self, module: nn.Module) -> None:
        """Name a module by the variable that holds it, or holds what it is part of."""
        best: tuple[tuple[int, bool], str, nn.Module] | None = None
        found = [pair for name, value in _variables(sys._getframe(1)) for pair in _modules_in(name, value)]
        for name, candidate in found:
            rank = sum(1 for _ in candidate.modules()), name != "self"
            if (best is None or rank > best[0]) and any(inner is module for inner in candidate.modules()):
                best = rank, name, candidate
        _, name, owner = best or ((0, False), type(module).__name__, module)
        self.add_module(owner, "model" if name == "self" else name)
        for name, candidate in found:  # averaged copies and the like are never called
            if not self.knows(candidate) and name != "self":
                self.add_module(candidate, name)

    def module(self, module: nn.Module | None) -> str:
        """A module's name."""
        if module is None:
            return ""
        return self._modules.get(id(module)) or type(module).__name__

    def tensor(self, tensor: Tensor) -> str:
        """A parameter's or buffer's name; empty where nothing named holds it."""
        known = self._tensors.get(id(tensor))
        return known[1] if known and known[0] is tensor else ""

    def leaf(self, leaf: Leaf) -> str:
        """A leaf's name, or a description of it."""
        name = self.tensor(leaf.tensor)
        if name:
            return name
        kind = "Parameter" if isinstance(leaf.tensor, nn.Parameter) else "tensor"
        return f"{kind} {list(leaf.tensor.shape)}"

    def is_registered(self, tensor: Tensor) -> bool:
        """Whether a module that is known holds the tensor now."""
        return any(tensor is other for root in self.roots.values() for other in root.parameters())

    def is_hidden(self, tensor: Tensor) -> bool:
        """Whether a module's attribute leads to the tensor, in a list, a dictionary or a plain object."""
        for _, module in self.modules():
            for name, value in vars(module).items():
                if name not in _REGISTERED and any(held is tensor for held in _held_by(value)):
                    return True
        return False

    def is_forgotten(self, tensor: Tensor) -> bool:
        """Whether a module held the tensor once, and none does now."""
        return id(tensor) in self._once_registered and not self.is_registered(tensor)

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every parameter of the known modules, once."""
        seen: set[int] = set()
        for name, root in self.roots.items():
            for inner, parameter in root.named_parameters():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield _join(name, inner), parameter

    def buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Every buffer of the known modules."""
        for name, root in self.roots.items():
            for inner, buffer in root.named_buffers():
                yield _join(name, inner), buffer

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Every known module, once."""
        seen: set[int] = set()
        for name, root in self.roots.items():
            for inner, module in root.named_modules():
                if id(module) not in seen:
                    seen.add(id(module))
                    yield _join(name, inner), module


def find_tensor_names(wanted: set[int]) -> dict[int, str]:
    """Names of tensors, by id, in the variables of the frames above: locals, dictionaries and attributes."""
    found: dict[int, str] = {}
    for name, value in _variables(sys._getframe(1)):
        for path, tensor in _tensors_in(name, value):
            if id(tensor) in wanted and (id(tensor) not in found or found[id(tensor)].isdigit()):
                found[id(tensor)] = path  # a place in a list is a poor name
    return found


def describe(names: Iterable[str]) -> str:
    """``'head.weight'``, or ``'head.*' (2 parameters)`` where several share a module."""
    every = sorted(set(names))
    if len(every) == 1:
        return f"'{every[0]}'"
    ends = zip(every[0].split("."), every[-1].split("."), strict=False)  # the two that differ most, as they are sorted
    shared = [part for part, _ in takewhile(lambda pair: pair[0] == pair[1], ends)]
    if shared:
        return f"'{'.'.join(shared)}.*' ({len(every)} parameters)"
    listed = ", ".join(f"'{name}'" for name in every[:3])
    return listed + (f" and {len(every) - 3} more" if len(every) > 3 else "")


def _variables(frame: FrameType | None) -> Iterator[tuple[str, Any]]:
    while frame is not None:
        if not is_library(frame.f_code.co_filename):
            yield from list(frame.f_locals.items())
            yield from list(frame.f_globals.items())
        frame = frame.f_back


def _modules_in(name: str, value: Any) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(value, nn.Module):
        yield name, value
        return
    for key, item in _items(value):
        if isinstance(item, nn.Module):
            yield key, item


def _tensors_in(name: str, value: Any, depth: int = 2) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif depth and not isinstance(value, nn.Module):
        for key, item in _items(value):
            yield from _tensors_in(key, item, depth - 1)


def _items(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [(str(key), item) for key, item in list(value.items())[:64]]
    if isinstance(value, (list, tuple)):
        return [(str(number), item) for number, item in enumerate(value[:64])]
    if type(value).__module__ in ("builtins", "torch") or isinstance(value, (type, torch.optim.Optimizer)):
        return []
    attributes = getattr(value, "__dict__", None)
    return list(attributes.items())[:64] if isinstance(attributes, dict) else []


_REGISTERED = ("_parameters", "_buffers", "_modules")


def _held_by(value: Any, depth: int = 3) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):
        yield from value.parameters()
    elif depth:
        for _, item in _items(value):
            yield from _held_by(item, depth - 1)


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)
