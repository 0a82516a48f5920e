"""Saved activations in fewer bits between forward and backward, with a bounded error."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from frostline.errors import ConfigError
from frostline.ops.saved_tensors import SavedTensorStore, StoreSaved, is_installed, is_large_activation
from frostline.ops.units import find_units
from frostline.regions import Override, override_
from frostline.units import KIB

Code = Literal["bfloat16", "int8"]
Region = Literal["frozen", "trainable", "any"]

_BLOCK = 64
_LEVELS = 127
_PIECE = 2**20  # elements coded at a time: the memory that coding takes besides


@dataclass(frozen=True)
class Compression:
    """What `compress_` installed.

    Attributes:
        units: Qualified names of the treated submodules, in the model's order.
        overrides: Their changed forwards, in the same order.
        store: What holds the codes; its `peak_written_bytes` counts the activations at their own size.
    """

    units: tuple[str, ...]
    overrides: tuple[Override, ...]
    store: SavedTensorStore

    def remove(self) -> None:
        """Let every unit keep its activations as they are again. Twice is once."""
        for override in self.overrides:
            override.remove()


def compress_(
    model: nn.Module,
    units: Iterable[str | nn.Module],
    *,
    code: Code,
    region: Region = "frozen",
    min_bytes: int = 64 * KIB,
) -> Compression:
    """Keep activations for backward as bfloat16, or as int8 with a scale for every 64 elements.

    Only what the gradient passes through is coded: floating-point tensors that require one. Masks, statistics
    (the mean of a norm, the log-sum-exp of attention), targets, parameters, buffers, other leaves and views of
    these stay exact. So does a storage of which a tensor is only a part, in int8 one that is not finite, and
    what a compiled submodule keeps. A storage that is saved several times is coded once.

    Types, `state_dict`, copying and pickling stay as they are. Inside a checkpoint, under ``torch.compile`` and
    under ``torch.func`` a unit is a plain call.

    Same as: the model without it in forward. Its gradients are those of activations off by no more than

    - bfloat16: 2^-8 of an element (of 1e-38 for smaller ones),
    - int8: 1/254 of the largest magnitude in its block of 64 neighbours in memory,

    and the rounding of their own type.

    A tensor changed in place before backward raises, as without it.

    Proof class: ``BOUNDED``: never chosen unless allowed. Measured on a transformer of 12 layers (width 256,
    4 x 256 tokens, float32, no dropout), the relative error of the whole gradient: bfloat16 6e-4 and int8 3e-3
    frozen behind a trainable layer, 1.3e-3 and 6e-3 where everything trains (worst parameter 2e-3 and 8e-3);
    int8 under autocast to bfloat16, in both, 1.0e-2 and 1.1e-2.

    Memory: 2 bytes an element, or 1.0625, instead of 4 (float32). The same model's step peaks 84.8 MiB (bfloat16)
    and 56.6 MiB (int8) above what is resident instead of 144.8. In backward, the storages of one operator at a
    time are there at full size; coding takes a few MiB besides.

    Cost: one pass over every storage to code it and one to decode it; int8 waits for the device once a
    storage, to see whether it is finite.

    Args:
        model: The model whose submodules `units` are.
        units: Qualified names, with ``*`` for any text without a dot and ``**`` for any text, or the modules.
        code: How activations are kept.
        region: Units without a trainable parameter, those with one, or both; seen anew at every call. An error
            behind a frozen unit's input moves only the gradient that passes through; a trainable unit's own
            gradients are sums over coded activations as well.
        min_bytes: Smaller storages stay exact.

    Returns:
        The handle whose `remove` takes it off again; graphs that exist then can still run backward.

    Raises:
        ConfigError: A unit that is not in the model, is never called itself or is compressed already, an
            unknown code or region, or a negative `min_bytes`.
    """
    _check(code, region, min_bytes)
    found = find_units(model, units, "compress")
    for name, module in found.items():
        if is_installed(module, _Codes):
            raise ConfigError(f"{name!r} is compressed already", do="remove that compression first")
    store = _Codes(min_bytes, code)
    forward = StoreSaved(store, partial(_lies_in, region))
    return Compression(tuple(found), tuple(override_(module, "forward", forward) for module in found.values()), store)


def _check(code: str, region: str, min_bytes: int) -> None:
    for name, value, choices in (("code", code, get_args(Code)), ("region", region, get_args(Region))):
        if value not in choices:
            raise ConfigError(f"{name} is {value!r}", where="compress_", do=f"take one of {', '.join(choices)}")
    if min_bytes < 0:
        raise ConfigError(f"min_bytes is {min_bytes}", where="compress_", do="give 0 or more")


def _lies_in(region: Region, module: nn.Module) -> bool:
    trains = any(parameter.requires_grad for parameter in module.parameters())
    return region == "any" or (region == "trainable") == trains


class _Codes(SavedTensorStore):
    def __init__(self, min_bytes: int, code: Code) -> None:
        super().__init__(min_bytes)
        self._code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return _Codes, (self.min_bytes, self._code)

    def takes(self, tensor: Tensor) -> bool:
        whole = tensor._base if tensor._base is not None else tensor
        return (
            tensor.requires_grad
            and tensor.is_floating_point()
            and tensor.element_size() > (2 if self._code == "bfloat16" else 1)
            and whole.dtype == tensor.dtype
            and whole.nbytes == tensor.untyped_storage().nbytes()
            and is_large_activation(tensor, self.min_bytes)
        )

    def write(self, flat: Tensor) -> Callable[[], Tensor] | None:
        if self._code == "bfloat16":
            return partial(flat.to(torch.bfloat16).to, flat.dtype)
        return _encode(flat)


def _encode(flat: Tensor) -> Callable[[], Tensor] | None:
    num_blocks = -(-len(flat) // _BLOCK)
    scale_type = torch.promote_types(flat.dtype, torch.float32)
    codes = torch.empty(num_blocks, _BLOCK, dtype=torch.int8, device=flat.device)
    scales = torch.empty(num_blocks, 1, dtype=scale_type, device=flat.device)
    for start in range(0, len(flat), _PIECE):
        piece = flat[start : start + _PIECE]
        rows = slice(start // _BLOCK, -(-(start + len(piece)) // _BLOCK))
        blocks = F.pad(piece, (0, -len(piece) % _BLOCK)).view(-1, _BLOCK).to(scale_type)
        scale = blocks.abs().amax(dim=1, keepdim=True).div_(_LEVELS)
        scales[rows] = scale
        codes[rows] = blocks.div(scale.clamp_(min=torch.finfo(scale_type).tiny)).round_()
    if not isinstance(flat, FakeTensor) and not bool(scales.isfinite().all()):
        return None
    return partial(_decode, codes, scales, len(flat), flat.dtype)


def _decode(codes: Tensor, scales: Tensor, num_elements: int, dtype: torch.dtype) -> Tensor:
    flat = torch.empty(codes.numel(), dtype=dtype, device=codes.device)
    for rows in zip(*(part.split(_PIECE // _BLOCK) for part in (flat.view_as(codes), codes, scales)), strict=True):
        out, code, scale = rows
        out.copy_(code * scale)
    return flat if len(flat) == num_elements else flat[:num_elements].clone()
