"""Autocast as it is on CUDA, for tensors that stand for CUDA's while they lie on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from frostline.patches import wrapped

_IN_FLOAT32 = (
    "acos asin cosh erfinv exp expm1 log log10 log1p log2 logsumexp reciprocal rsqrt sinh tan pow.Scalar "
    "pow.Tensor_Scalar pow.Tensor_Tensor softplus layer_norm native_layer_norm group_norm rms_norm cosine_similarity "
    "pdist renorm dist upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d "
    "upsample_bicubic2d upsample_trilinear3d"
).split()
"""Operators that CUDA's autocast runs in float32 and the CPU's leaves alone."""
_TO_FLOAT32 = "softmax.int log_softmax.int cumsum cumprod sum sum.dim_IntList linalg_vector_norm".split()
"""Those with a `dtype` of their own, which becomes float32."""


@contextmanager
def cuda_autocast() -> Iterator[None]:
    """Inside, `torch.autocast("cuda")` is the CPU's, with the float32 operators of CUDA's; float16 is its default."""
    cpu, cuda = _registered("AutocastCPU"), _registered("AutocastCUDA")
    with ExitStack() as stack:
        stack.enter_context(wrapped(torch.autocast, "__init__", _on_the_cpu))
        library = torch.library.Library("aten", "IMPL")
        stack.callback(library._destroy)
        for name in (*_IN_FLOAT32, *_TO_FLOAT32):
            if f"aten::{name}" in cuda - cpu:
                library.impl(name, _to_float32(name) if name in _TO_FLOAT32 else _in_float32(name), "AutocastCPU")
        yield


def _registered(key: str) -> set[str]:
    return set(torch._C._dispatch_get_registrations_for_dispatch_key(key))


def _on_the_cpu(init: Callable[..., None]) -> Callable[..., None]:
    @wraps(init)
    def translated(
        self: torch.autocast, device_type: str, dtype: torch.dtype | None = None, *args: Any, **kwargs: Any
    ) -> None:
        if device_type == "cuda":
            device_type, dtype = "cpu", dtype or torch.get_autocast_dtype("cuda")
        init(self, device_type, dtype, *args, **kwargs)

    return translated


def _in_float32(name: str) -> Callable[..., Any]:
    operator = _operator(name)

    def run(*args: Any, **kwargs: Any) -> Any:
        with _no_autocast():
            return operator(*tree_map(_wide, args), **tree_map(_wide, kwargs))

    return run


def _to_float32(name: str) -> Callable[..., Any]:
    operator = _operator(name)

    def run(tensor: Tensor, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Any:
        arguments = [argument.name for argument in operator._schema.arguments]
        position = arguments.index("dtype") - 1  # softmax takes it by position, too
        if position < len(args):
            dtype, args = args[position], args[:position]
        if dtype is None and _is_narrow(tensor):
            dtype = torch.float32
        with _no_autocast():
            return operator(tensor, *args, dtype=dtype, **kwargs)

    return run


def _operator(name: str) -> torch._ops.OpOverload:
    packet, _, overload = name.partition(".")
    operator: torch._ops.OpOverload = getattr(getattr(torch.ops.aten, packet), overload or "default")
    return operator


def _no_autocast() -> Any:
    return torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU))


def _is_narrow(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)


def _wide(value: Any) -> Any:
    return value.float() if _is_narrow(value) else value
