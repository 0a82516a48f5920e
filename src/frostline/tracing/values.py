"""Small exact digests of tensors' values: did it change, is it zero, is it finite?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """The tensors in a sequence or dictionary, however deep."""
    for item in tree.values() if isinstance(tree, dict) else tree:
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, (tuple, list, dict)):
            yield from tensors_in(item)


def fingerprint(tensor: Tensor) -> int | None:
    """A number that changes whenever one element does: the sum of the elements' bit patterns; None on fake tensors."""
    if not has_values(tensor):
        return None
    with torch.no_grad():
        plain = tensor.detach()
        if plain.layout is not torch.strided:
            plain = plain.coalesce().values() if plain.is_sparse else plain.to_dense()
        if plain.is_complex():
            plain = torch.view_as_real(plain)
        flat = plain.contiguous().view(-1)
        if flat.nbytes % 8 == 0 and flat.storage_offset() * flat.element_size() % 8 == 0:
            return int(flat.view(torch.int64).sum())  # 20 times as fast as narrower integers
        return int(flat.view(_INTEGERS[flat.element_size()]).sum(dtype=torch.int64))


def gradient_state(tensor: Tensor) -> Literal["none", "zero", "finite", "nonfinite", "unread"]:
    """What a tensor's `.grad` is."""
    gradient = tensor.grad
    if gradient is None:
        return "none"
    if not has_values(gradient):
        return "unread"
    magnitude = float(magnitude_of(gradient))
    if magnitude == 0:
        return "zero"
    return "finite" if magnitude < float("inf") else "nonfinite"


def magnitude_of(tensor: Tensor) -> Tensor:
    """The largest magnitude of a tensor's elements, not yet read; nan where one is nan, 0 where there is none."""
    plain = tensor.detach()
    if plain.is_sparse:
        plain = plain.coalesce().values()
    elif plain.is_nested:
        plain = plain.values()
    if not plain.numel():
        return torch.zeros(())
    if plain.is_complex():
        plain = torch.view_as_real(plain)
    low, high = torch.aminmax(plain)  # 10 times as fast on a CPU as the norm
    return torch.maximum(-low, high)


def is_transformed() -> bool:
    """Whether a transform of torch.func runs, in which no value can be read."""
    return torch._C._functorch.peek_interpreter_stack() is not None or torch._C._get_tracing_state() is not None


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor's elements can be read."""
    return not tensor.is_meta and torch._guards.detect_fake_mode(tensor) is None
