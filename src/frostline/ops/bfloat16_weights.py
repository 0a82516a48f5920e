"""Frozen weights in the type that autocast casts them to anyway, and their float32 values in a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.hooks import RemovableHandle

from frostline.errors import CheckpointError, StepError
from frostline.ops.lean.function import autocast_dtype
from frostline.ops.weight_file import WeightFile
from frostline.regions import Override, find_override, override_

_TYPES = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip


@dataclass(frozen=True)
class Bfloat16Weights:
    """What `store_bfloat16_` installed, and what it left alone.

    Attributes:
        units: Qualified names of the layers it took, in the model's order.
        overrides: Their changed forwards, in the same order.
        left: The other layers' names that hold parameters of their own, each with the reason.
        parameters: The parameters it took, by their names in the file.
        file: Their float32 values.
        hooks: On the layers' `state_dict` and `load_state_dict`.
    """

    units: tuple[str, ...]
    overrides: tuple[Override, ...]
    left: dict[str, str]
    parameters: dict[str, nn.Parameter]
    file: WeightFile
    hooks: tuple[RemovableHandle, ...]

    @property
    def num_bytes_freed(self) -> int:
        """What the weights take less."""
        return sum(2 * parameter.numel() for parameter in self.parameters.values())

    def remove(self) -> None:
        """Put the float32 values back, bit for bit; the file stays. Twice is once.

        Raises:
            CheckpointError: The file is gone or damaged, or a weight was changed meanwhile. The layers stay
                as they are then.
        """
        real = {name: parameter for name, parameter in self.parameters.items() if not isinstance(parameter, FakeTensor)}
        for name, parameter in real.items():
            if not torch.equal(self.file.read(name).bfloat16(), parameter.detach().cpu().bfloat16()):
                raise CheckpointError(
                    f"{name!r} is not the rounded weight of the file: one of the two was changed",
                    where=str(self.file.path),
                    do="load the model's checkpoint again",
                )
        for name, parameter in self.parameters.items():
            values = torch.empty_like(parameter, dtype=torch.float32, requires_grad=False)
            parameter.data = values.copy_(self.file.read(name)) if name in real else values
        for override in self.overrides:
            override.remove()
        for hook in self.hooks:
            hook.remove()
        self.parameters.clear()


def store_bfloat16_(model: nn.Module, path: Path) -> Bfloat16Weights:
    """Hold frozen weights of matrix products and convolutions in bfloat16, for steps under bfloat16 autocast.

    Takes Linear (output heads over a vocabulary too), Conv1d-3d and ConvTranspose1d-3d whose weight is frozen
    and float32; the bias with it where it is frozen. A weight that another kind of layer has as well, such as
    an embedding, is left: an embedding does not follow autocast. Parameters stay the same objects.

    The float32 values go to a safetensors file first. `state_dict` gives them, mapped from there (on the CPU,
    read as they are used), so a checkpoint is what it would have been; the file must stay as long as that or
    `remove` is wanted. It is used again by the next run, if it holds the same weights. `load_state_dict`
    accepts these values and no others.

    A stored layer called outside autocast to bfloat16, unfrozen, or converted (``model.float()``) raises: its
    float32 weight is not there. Code that reads such a weight itself and not through the layer sees
    bfloat16, and is exact only where autocast would cast it. Install `lean_` before this, where both are wanted:
    it leaves layers whose forward is changed already.

    Same as: the model without it, under autocast to bfloat16.

    Proof class: ``EXACT``: the same kernels on the same bits, with autocast's cast made once. ``torch.equal``
    on outputs and all gradients on the CPU, also compiled; on CUDA it was not shown.

    Memory: 2 bytes a weight instead of 4, and no cast copy, which autograd keeps until backward (2 bytes a
    weight and call, as with `lean_`).

    A transformer of 12 layers (width 256, 4 x 256 tokens, frozen behind a trainable layer) has 19.5 MiB
    resident instead of 38.6, and its step peaks at 103.9 MiB instead of 141.9.

    Cost: less than none in a step: the casts are gone. The file is 4 bytes a weight, written once.

    Args:
        model: The model or the part of it to treat; freeze first.
        path: The file.

    Returns:
        The handle whose `remove` restores float32.

    Raises:
        CheckpointError: The file is there and holds something else. Nothing has been changed then.
        ConfigError: The disk has no room for it, or the directory cannot be made.
        StepError: Not here, but in the forward of a stored layer: not under autocast to bfloat16, unfrozen,
            or converted.
    """
    units, left = _choose(model)
    named = {f"{unit}.{name}" if unit else name: (unit, name) for unit in units for name in _frozen(units[unit])}
    parameters = {key: getattr(units[unit], name) for key, (unit, name) in named.items()}
    file = WeightFile(path)
    if not any(isinstance(parameter, FakeTensor) for parameter in parameters.values()):  # these have no values
        file.write(parameters)
    for parameter in parameters.values():
        parameter.data = parameter.data.bfloat16()
    hooks = []
    for unit, layer in units.items():
        keys = {name: key for key, (owner, name) in named.items() if owner == unit}
        hooks.append(layer.register_state_dict_post_hook(partial(_give_float32, file, keys)))
        hooks.append(layer.register_load_state_dict_pre_hook(partial(_refuse_others, file, keys)))
    overrides = tuple(override_(layer, "forward", _call) for layer in units.values())
    return Bfloat16Weights(tuple(units), overrides, left, parameters, file, tuple(hooks))


def _call(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    module: Any = inner.__self__  # type: ignore[attr-defined]
    weight: Tensor = module.weight
    kind, input = type(module).__name__, args[0] if args else kwargs.get("input")
    if weight.dtype is not torch.bfloat16 or weight.requires_grad:
        what = "was unfrozen" if weight.requires_grad else f"was converted to {weight.dtype}"
        raise StepError(
            f"a {kind} whose weight store_bfloat16_ holds in bfloat16 {what}",
            do="call remove() on what store_bfloat16_ returned: the float32 values come back",
        )
    if isinstance(input, Tensor) and autocast_dtype(input) is not torch.bfloat16:
        raise StepError(
            f"a {kind} whose weight is held in bfloat16 was called outside autocast to bfloat16",
            do="run it under torch.autocast(..., torch.bfloat16), or call remove() on what store_bfloat16_ returned",
        )
    return inner(*args, **kwargs)


def _give_float32(
    file: WeightFile, keys: dict[str, str], module: nn.Module, state: dict[str, Any], prefix: str, _: object
) -> None:
    for name, key in keys.items():
        if prefix + name in state:
            state[prefix + name] = file.read(key)


def _refuse_others(
    file: WeightFile, keys: dict[str, str], module: nn.Module, state: dict[str, Any], prefix: str, *_: object
) -> None:
    for name, key in keys.items():
        values = state.get(prefix + name)
        if values is not None and not torch.equal(values.detach().cpu(), file.read(key)):
            raise CheckpointError(
                f"{prefix + name!r} to be loaded is another weight than the stored one",
                where=str(file.path),
                do="call remove() on what store_bfloat16_ returned, load, and store again with another path",
            )


def _frozen(layer: nn.Module) -> list[str]:
    return [
        name
        for name, parameter in layer.named_parameters(recurse=False)
        if not parameter.requires_grad and parameter.dtype is torch.float32
    ]


def _choose(model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, str]]:
    layers = {name: layer for name, layer in model.named_modules() if any(True for _ in layer.parameters(False))}
    left = {name: reason for name, layer in layers.items() if (reason := _reason_to_leave(layer))}
    owners: dict[int, list[str]] = {}
    for name, layer in layers.items():
        for parameter in layer.parameters(recurse=False):
            owners.setdefault(parameter.untyped_storage()._cdata, []).append(name)
    while True:  # a layer left may take others with it
        units = {name: layer for name, layer in layers.items() if name not in left}
        for name, layer in units.items():
            tensors = [getattr(layer, key) for key in _frozen(layer)]
            around = {owner for tensor in tensors for owner in owners[tensor.untyped_storage()._cdata]}
            others = sorted(owner for owner in around if owner in left)
            if others:
                left[name] = f"shares a weight with {others[0]!r}"
        if len(units) + len(left) == len(layers):
            return units, left


def _reason_to_leave(layer: nn.Module) -> str:
    if type(layer) not in _TYPES:
        return f"{type(layer).__name__} does not follow autocast, or reads its weight elsewhere"
    if find_override(layer, "forward", _call):
        return "is stored in bfloat16 already"
    own = dict(layer.named_parameters(recurse=False))
    if not own.keys() <= {"weight", "bias"} or "weight" not in own:
        return "makes its weight anew at each call"
    weight = own["weight"]
    if weight.requires_grad:
        return "trains"
    if weight.dtype is not torch.float32:
        return f"is {weight.dtype}"
    whole = all(parameter.untyped_storage().nbytes() == parameter.nbytes for parameter in own.values())
    return "" if whole else "its parameters are parts of a larger memory"
