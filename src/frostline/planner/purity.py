"""Whether a module's forward may be run twice: the same outputs, and nothing else changed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_leaves

from frostline.memory import Workload
from frostline.planner.chunking import by_chunks
from frostline.planner.guard import no_training
from frostline.planner.running import is_fake, is_fake_tensor
from frostline.regions import override_, rehearsal

_DEPTH = 6
_EPS_ALLOWED = 256
_MAX_CHUNKS = 16
_OWN = ("_parameters", "_buffers", "_modules")
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def impure_units(workload: Workload, units: Mapping[str, nn.Module]) -> dict[str, str]:
    """The units whose forward must not be run twice, each with the reason.

    Each unit is called twice on its real arguments from the same random state, without gradients, so this needs
    little memory. Outputs must be equal bit by bit. Buffers, plain attributes, arguments such as key-value caches, and
    Python's and numpy's random generators, which no checkpoint puts back, must be as before; lists and tensors in
    attributes must be the same after the first call and after the second. A model without values is asked the same,
    but for the values.

    Args:
        workload: Its step is run once, without a backward; everything is afterwards as it was.
        units: By qualified name.
    """
    return _asked(workload, units, _call_twice)


def mixing_units(workload: Workload, units: Mapping[str, nn.Module]) -> dict[str, str]:
    """The units that do not treat their samples apart, each with the reason: they cannot be run by chunks.

    As `impure_units`, but each unit's second call takes a few samples at a time, and its outputs must be
    equal but for rounding.
    """
    return _asked(workload, units, _call_by_chunks)


def _asked(workload: Workload, units: Mapping[str, nn.Module], call: Callable[..., Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    with ExitStack() as stack:
        stack.enter_context(rehearsal(workload.model, workload.optimizers))
        for name, module in units.items():
            override = override_(module, "forward", partial(call, found, name))
            stack.callback(override.remove)
        stack.enter_context(no_training())
        problem = ""
        try:
            with torch.no_grad():
                workload.step()
        except Exception as error:  # a step may well need its gradients
            problem = f": a step without gradients ended with {type(error).__name__}"
    untried = {name: f"its forward could not be tried{problem}" for name in units if name not in found}
    return {**{name: reason for name, reason in found.items() if reason}, **untried}


def _call_by_chunks(found: dict[str, str], name: str, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if found.get(name):
        return inner(*args, **kwargs)
    state = _rng_state(args, kwargs)
    first = inner(*args, **kwargs)
    try:
        with _from(state):
            second = by_chunks(_MAX_CHUNKS, inner, *args, **kwargs)
        same = _equal(first, second, _close)
    except Exception:  # whatever it is that it cannot do
        same = False
    found[name] = "" if same else "its samples are not treated apart"
    return first


def _call_twice(found: dict[str, str], name: str, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    module: nn.Module = inner.__self__  # type: ignore[attr-defined]
    if found.get(name) or torch._C._current_graph_task_id() != -1:
        return inner(*args, **kwargs)
    before, buffers = _state(module), _values(module)
    arguments = _fingerprints(args, kwargs)
    state, others = _rng_state(args, kwargs), _other_generators()
    first = inner(*args, **kwargs)
    found[name] = (
        _difference("its forward draws numbers that no recomputation draws again, from", others, _other_generators())
        or _changed_statistics(module)
        or _changed_buffer(module, buffers)
        or _difference("its forward changes the attribute", before, _state(module))
        or _difference("its forward changes its argument", arguments, _fingerprints(args, kwargs))
    )
    if not found[name]:
        remembered = _remembered(module)
        with _from(state):
            second = inner(*args, **kwargs)
        found[name] = _difference("run again, its forward changes the attribute", remembered, _remembered(module))
        if not _equal(first, second, _same):
            found[name] = "its forward gives other outputs when it is run again"
    return first


def _changed_statistics(module: nn.Module) -> str:
    for name, part in module.named_modules():
        if isinstance(part, _NormBase) and part.training and part.running_mean is not None:
            where = f"{name}.running_mean" if name else "running_mean"
            return f"its forward changes the buffer {where!r}, of a {type(part).__name__} in training mode"
    return ""


def _values(module: nn.Module) -> dict[str, tuple[Tensor, int, Tensor | None]]:
    fake = is_fake(module)
    return {
        name: (buffer, buffer._version, None if fake else buffer.detach().clone())
        for name, buffer in module.named_buffers()
    }


def _changed_buffer(module: nn.Module, before: dict[str, tuple[Tensor, int, Tensor | None]]) -> str:
    for name, buffer in module.named_buffers():
        if name not in before:
            return f"its forward makes the buffer {name!r}"
        old, version, values = before[name]
        same = buffer is old and buffer._version == version if values is None else _same(buffer, values)
        if not same:
            return f"its forward changes the buffer {name!r}"
    return ""


def _remembered(module: nn.Module) -> dict[str, object]:
    """All that is kept in attributes of the modules inside: lists of losses, caches, running tensors."""
    named = {
        f"{name}.{key}" if name else key: value
        for name, part in module.named_modules()
        for key, value in vars(part).items()
        if key not in _OWN and not isinstance(value, _PLAIN)
    }
    return dict(_walk(named, "", _DEPTH, set(), _Remembered))


class _Remembered:
    """A tensor in an attribute, as it is now; equal to another of the same values."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, tensor: Tensor) -> None:
        self._values = tensor if is_fake_tensor(tensor) else tensor.detach().clone()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Remembered) and _same(self._values, other._values)


def _state(module: nn.Module) -> dict[str, object]:
    """Plain attributes of all modules inside, such as counters."""
    return {
        f"{name}.{key}" if name else key: value
        for name, part in module.named_modules()
        for key, value in vars(part).items()
        if isinstance(value, _PLAIN)
    }


def _difference(what: str, before: dict[str, object], after: dict[str, object]) -> str:
    for name in [*before, *after]:
        if before.get(name, _PLAIN) != after.get(name, _PLAIN):
            return f"{what} {name!r}"
    return ""


def _fingerprints(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, object]:
    named = {**{str(place): value for place, value in enumerate(args)}, **kwargs}
    return dict(_walk(named, "", _DEPTH, set()))


def _identity(tensor: Tensor) -> object:
    return id(tensor), None if tensor.is_inference() else tensor._version, tuple(tensor.shape)


def _walk(
    value: Any, name: str, depth: int, seen: set[int], of_tensor: Callable[[Tensor], object] = _identity
) -> Iterator[tuple[str, object]]:
    """What of an argument can change: tensors, plain values, and containers' contents."""
    if isinstance(value, Tensor):
        yield name, of_tensor(value)
    elif isinstance(value, _PLAIN):
        yield name, value
    elif depth and id(value) not in seen and not isinstance(value, (nn.Module, type)):
        seen.add(id(value))
        if isinstance(value, (list, tuple)):
            items: list[tuple[object, Any]] = [("len", len(value)), *enumerate(value)]
        elif isinstance(value, dict):
            items = [("len", len(value)), *value.items()]
        else:
            items = list(getattr(value, "__dict__", {}).items())
        for key, item in items:
            yield from _walk(item, f"{name}.{key}" if name else str(key), depth - 1, seen, of_tensor)


def _rng_state(*trees: object) -> tuple[Tensor, list[tuple[torch.device, Tensor]]]:
    devices = {leaf.device for leaf in tree_leaves(trees) if isinstance(leaf, Tensor) and leaf.device.type == "cuda"}
    return torch.get_rng_state(), [(device, torch.cuda.get_rng_state(device)) for device in devices]


def _other_generators() -> dict[str, object]:
    """The states of Python's and numpy's random generators."""
    kind, keys, *rest = np.random.get_state()
    return {"random": random.getstate(), "numpy.random": (kind, np.asarray(keys).tobytes(), *rest)}


@contextmanager
def _from(state: tuple[Tensor, list[tuple[torch.device, Tensor]]]) -> Iterator[None]:
    cpu, gpus = state
    with torch.random.fork_rng(devices=[device for device, _ in gpus]):
        torch.set_rng_state(cpu)
        for device, values in gpus:
            torch.cuda.set_rng_state(values, device)
        yield


def _equal(first: Any, second: Any, same: Callable[[Tensor, Tensor], bool]) -> bool:
    a, b = (tuple(_leaves(made, _DEPTH)) for made in (first, second))
    return len(a) == len(b) and all(_equal_leaves(x, y, same) for x, y in zip(a, b, strict=True))


def _leaves(made: Any, depth: int) -> Iterator[Any]:
    """Tensors and plain values in what a forward returned, also in objects of classes that pytrees do not know."""
    for leaf in tree_leaves(made):
        if isinstance(leaf, (Tensor, *_PLAIN)):
            yield leaf
        elif depth and not isinstance(leaf, (nn.Module, type)):
            yield from _leaves(dict(getattr(leaf, "__dict__", {})), depth - 1)


def _equal_leaves(a: Any, b: Any, same: Callable[[Tensor, Tensor], bool]) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and same(a, b)
    return type(a) is type(b) and bool(a == b or (a != a and b != b))


def _same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if is_fake_tensor(a) or is_fake_tensor(b):
        return True
    return bool(torch.equal(a, b)) or bool(((a == b) | ((a != a) & (b != b))).all())


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or not a.is_floating_point() or is_fake_tensor(a):
        return _same(a, b)
    scale = float(a.abs().max()) if a.numel() else 0.0
    return bool(((a - b).abs() <= _EPS_ALLOWED * torch.finfo(a.dtype).eps * scale).all())
