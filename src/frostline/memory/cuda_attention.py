"""Which attention kernel CUDA would take, and what it keeps for backward.

The rules are those of ``aten/src/ATen/native/transformers/cuda/sdp_utils.cpp`` for a GPU of compute capability 8 or
more: flash, then memory-efficient, then plain arithmetic.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

AttentionKernel = Literal["flash", "memory-efficient", "math"]

_aten = torch.ops.aten
_HALVES = (torch.float16, torch.bfloat16)
_FLASH_LARGEST_HEAD = 256
_FLASH_HEAD_MULTIPLE = 8
_MASK_MULTIPLE = 16


def attention_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    is_causal: bool = False,
) -> AttentionKernel:
    """The kernel for these tensors of shape (batch, heads, length, head size).

    `torch.nn.attention.sdpa_kernel` is heeded.
    """
    if not (
        query.dim() == key.dim() == value.dim() == 4
        and query.dtype == key.dtype == value.dtype
        and query.size(0) == key.size(0) == value.size(0)
        and key.size(1) == value.size(1)
        and all(tensor.size(2) and tensor.stride(-1) == 1 for tensor in (query, key, value))
    ):
        return "math"
    if _flash_can(query, key, value, mask, is_causal):
        return "flash"
    if _efficient_can(query, key, value):
        return "memory-efficient"
    return "math"


def cuda_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, AttentionKernel]:
    """`torch.nn.functional.scaled_dot_product_attention` by the kernel CUDA would take; for shapes, not for values.

    Returns:
        The output, and the kernel.
    """
    kernel = attention_kernel(query, key, value, mask=attn_mask, is_causal=is_causal)
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(attn_mask.logical_not(), -torch.inf)
    if kernel == "flash":
        head_size = query.size(-1)
        scale = head_size**-0.5 if scale is None else scale
        padded = [_pad_last(tensor, _FLASH_HEAD_MULTIPLE) for tensor in (query, key, value)]
        flash = _aten._scaled_dot_product_flash_attention
        return flash(*padded, dropout_p, is_causal, False, scale=scale)[0][..., :head_size], kernel
    if kernel == "memory-efficient":
        keeps = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
        if attn_mask is not None:
            attn_mask = _aligned(attn_mask).expand(*query.shape[:3], key.size(2))
        efficient = _aten._scaled_dot_product_efficient_attention
        return efficient(query, key, value, attn_mask, keeps, dropout_p, is_causal, scale=scale)[0], kernel
    math = _aten._scaled_dot_product_attention_math
    return (
        math(query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa)[0],
        kernel,
    )


def _flash_can(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool) -> bool:
    return (
        torch.backends.cuda.flash_sdp_enabled()
        and mask is None
        and query.dtype in _HALVES
        and query.size(-1) == key.size(-1) == value.size(-1) <= _FLASH_LARGEST_HEAD
        and query.size(1) % key.size(1) == 0
        and not (is_causal and query.size(2) != key.size(2))
    )


def _efficient_can(query: Tensor, key: Tensor, value: Tensor) -> bool:
    multiple = 8 if query.dtype in _HALVES else 4
    return (
        torch.backends.cuda.mem_efficient_sdp_enabled()
        and query.dtype in (torch.float32, *_HALVES)
        and query.size(1) == key.size(1)
        and query.size(-1) == key.size(-1)
        and all(tensor.size(-1) % multiple == 0 for tensor in (query, value))
    )


def _aligned(mask: Tensor) -> Tensor:
    """The memory-efficient kernel wants rows of a mask that start on aligned addresses: others are padded."""
    length = mask.size(-1)
    return mask if length % _MASK_MULTIPLE == 0 else _pad_last(mask, _MASK_MULTIPLE)[..., :length]


def _pad_last(tensor: Tensor, multiple: int) -> Tensor:
    missing = -tensor.size(-1) % multiple
    return F.pad(tensor, (0, missing)) if missing else tensor
