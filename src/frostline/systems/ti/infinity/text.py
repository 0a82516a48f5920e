"""Text features of several prompts in one tensor, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from frostline.errors import ShapeError

OfficialText = tuple[Tensor, list[int], Tensor, int]
"""``(kv_compact, lens, cu_seqlens_k, max_len)`` of the published code."""


@dataclass(frozen=True)
class CompactText:
    """What a text encoder gave for each prompt, one after the other.

    Attributes:
        features: Shape (sum of `lengths`, text width).
        lengths: Tokens of each prompt, its end-of-sequence token included.
    """

    features: Tensor
    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.features.dim() != 2 or self.features.size(0) != sum(self.lengths) or min(self.lengths, default=0) < 1:
            raise ShapeError(
                f"text features of prompts with {', '.join(map(str, self.lengths)) or 'no'} tokens",
                expected=(sum(self.lengths), "text width"),
                actual=tuple(self.features.shape),
                do="give every prompt one row or more, and no padding",
            )

    @property
    def num_prompts(self) -> int:
        """How many prompts, B."""
        return len(self.lengths)

    @classmethod
    def join(cls, features: Sequence[Tensor]) -> CompactText:
        """One tensor of shape (length, text width) per prompt."""
        return cls(torch.cat(list(features)), tuple(prompt.size(0) for prompt in features))

    def split(self) -> tuple[Tensor, ...]:
        """One tensor of shape (length, text width) per prompt, as views."""
        return torch.split(self.features, list(self.lengths))

    def to(self, device: torch.device) -> CompactText:
        """The same text on a device."""
        return CompactText(self.features.to(device), self.lengths)

    def followed_by(self, other: CompactText) -> CompactText:
        """The prompts of both."""
        return CompactText(torch.cat([self.features, other.features]), self.lengths + other.lengths)

    @classmethod
    def from_official(cls, text: OfficialText) -> CompactText:
        """From ``(kv_compact, lens, cu_seqlens_k, max_len)``; the features are not copied.

        Raises:
            ShapeError: The lengths do not add up to the rows.
        """
        return cls(text[0], tuple(int(length) for length in text[1]))

    def official(self) -> OfficialText:
        """As ``(kv_compact, lens, cu_seqlens_k, max_len)``; ``cu_seqlens_k`` is int32 of shape (B + 1,)."""
        ends = torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int32, device=self.features.device)
        return self.features, list(self.lengths), ends, max(self.lengths)
