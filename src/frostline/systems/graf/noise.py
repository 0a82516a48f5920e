"""Random numbers that are a function of seed, ray and sample: whatever the chunk, the batch or the process.

A hash instead of a generator, so that a chunk that is rendered again, or in other company, meets the same numbers, and
none have to be kept.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_STEP = 0x9E3779B9  # 2^32 over the golden ratio


def ray_seeds(image_seeds: Tensor, num_rays: int) -> Tensor:
    """A seed a ray.

    Args:
        image_seeds: One an image, int64 (B,), 0 or more.
        num_rays: Of each image.

    Returns:
        Int64 (B, N) of 32 bits each.
    """
    seeds = _mix(_mix(image_seeds & _WORD) ^ (image_seeds >> 32))
    return _mix(seeds[:, None] + _counter(num_rays, image_seeds.device))


def uniform(seeds: Tensor, num: int, *, stream: int, dtype: torch.dtype) -> Tensor:
    """Numbers between 0 and 1, both exclusive.

    Args:
        seeds: Of 32 bits, int64 (...).
        num: For each.
        stream: Another one gives independent numbers.
        dtype: Of the result; all hold the same 2^23 values, none of which rounds to 1.

    Returns:
        (..., num).
    """
    words = _mix(_mix(seeds + stream * _STEP & _WORD)[..., None] + _counter(num, seeds.device))
    return ((words >> 9).to(dtype) + 0.5) / 2**23


def normal(seeds: Tensor, num: int, *, stream: int, dtype: torch.dtype) -> Tensor:
    """Standard normal numbers, (..., num): the quantiles of `uniform`, up to 5.3 standard deviations."""
    return (2 * uniform(seeds, num, stream=stream, dtype=dtype) - 1).erfinv() * math.sqrt(2)


def _counter(num: int, device: torch.device) -> Tensor:
    return torch.arange(num, device=device) * _STEP


def _mix(words: Tensor) -> Tensor:
    """A bijection of 32-bit words in which every bit depends on all (Wellons, hash-prospector, lowbias32)."""
    words = words & _WORD
    words = (words ^ (words >> 16)) * 0x7FEB352D & _WORD
    words = (words ^ (words >> 15)) * 0x846CA68B & _WORD
    return words ^ (words >> 16)
