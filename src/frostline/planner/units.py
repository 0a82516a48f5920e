"""The parts of a model that a plan decides about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

_MAINLY = 2 / 3
_HEAVY = 1 / 50


def find_units(model: nn.Module) -> tuple[str, ...]:
    """The repeated blocks of a model, by qualified name, in its order; none lies inside another.

    Blocks are the composite children of a `ModuleList`, `ModuleDict` or `Sequential` in which a class occurs twice.
    Where such children differ in size and consist mainly of repeated blocks themselves, as the stages of a Swin or a
    ResNet do, the inner blocks are taken. A model without any is taken apart into its direct children with at least 2 %
    of its parameters, below a lone wrapper.
    """
    units: dict[nn.Module, str] = {}
    for name in _repeated(model, ""):
        units.setdefault(model.get_submodule(name), name)  # a block that is shared has its first name
    return tuple(units.values()) or _heavy_children(model)


def _repeated(module: nn.Module, name: str) -> Iterator[str]:
    blocks = _blocks(module)
    stages = len({_size(block) for _, block in blocks}) > 1
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}" if name else child_name
        inner = tuple(_repeated(child, path))
        is_block = any(child is block for _, block in blocks)
        if is_block and not (inner and stages and _mainly_inside(child, path, inner)):
            yield path
        else:
            yield from inner


def _blocks(module: nn.Module) -> list[tuple[str, nn.Module]]:
    if not isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.Sequential)):
        return []
    children = [(name, child) for name, child in module.named_children() if any(True for _ in child.children())]
    called = [(name, child) for name, child in children if type(child).forward is not nn.Module.forward]
    classes = [type(child) for _, child in called]
    return called if any(classes.count(kind) > 1 for kind in classes) else []


def _mainly_inside(module: nn.Module, path: str, inner: Sequence[str]) -> bool:
    held = sum(_size(module.get_submodule(name.removeprefix(f"{path}."))) for name in inner)
    return held >= _MAINLY * _size(module)


def _heavy_children(model: nn.Module) -> tuple[str, ...]:
    name, module = "", model
    while True:
        heavy = {
            child_name: child
            for child_name, child in module.named_children()
            if _size(child) >= _HEAVY * max(1, _size(model))
        }
        if len(heavy) != 1:
            break
        ((child_name, module),) = heavy.items()
        name = f"{name}.{child_name}" if name else child_name
    prefix = f"{name}." if name else ""
    called = (child_name for child_name, child in heavy.items() if type(child).forward is not nn.Module.forward)
    return tuple(prefix + child_name for child_name in called)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
