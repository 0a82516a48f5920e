"""In-place changes of saved tensors: any saved-tensor hook switches autograd's own check for them off."""

from __future__ import annotations

import torch
from torch import Tensor


def alias_without_memory(tensor: Tensor) -> Tensor:
    """A tensor that counts `tensor`'s in-place changes with it and holds none of its memory."""
    alias = tensor.detach()
    alias.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return alias


def refuse_changed(tensor: Tensor, version: int, shape: torch.Size) -> None:
    """Raise as autograd does where a tensor that was saved has been changed since.

    Args:
        tensor: It, or its alias.
        version: What it was when it was saved.
        shape: Of what was saved.

    Raises:
        RuntimeError: It has another version.
    """
    if tensor._version != version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: "
            f"[{tensor.type()} {list(shape)}] is at version {tensor._version}; expected version {version} instead"
        )
