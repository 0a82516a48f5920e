"""Binary spherical quantisation of a feature map, scale by scale (BSQ: arXiv 2406.07548; scales: arXiv 2404.02905)."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from frostline.errors import ConfigError, ShapeError
from frostline.systems.ti.infinity.schedule import Schedule

_PATCH = 2


@dataclass(frozen=True)
class Codes:
    """A picture as bits.

    Attributes:
        bits: What is to be predicted, 0 or 1, uint8 of shape (B, L, D): D bits for each of the schedule's L tokens.
        inputs: What the transformer sees of the coarser scales, shape (B, L - L of the first scale, D).
        features: What the bits stand for, shape (B, code bits, height, width); flipped bits are in it.
    """

    bits: Tensor
    inputs: Tensor
    features: Tensor


@dataclass(frozen=True)
class MultiScaleBSQ:
    """The quantiser of Infinity's tokenizers; it has no weights.

    A scale's bits are the signs of what the coarser scales have left of the features, averaged over the cells of its
    grid; a bit stands for +-1/sqrt(code bits). With patches, a token holds the bits of 2 x 2 cells.

    Attributes:
        code_bits: Channels of the feature map.
        patchify: Whether 2 x 2 cells make one token (the 8B model).
    """

    code_bits: int
    patchify: bool = False

    @property
    def token_bits(self) -> int:
        """Bits of one token, D."""
        return self.code_bits * (_PATCH**2 if self.patchify else 1)

    @torch.no_grad()
    def encode(
        self,
        features: Tensor,
        schedule: Schedule,
        *,
        flip: float = 0.0,
        num_flip_scales: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Codes:
        """Bits of a feature map, and what the transformer sees when it learns to predict them.

        With `flip`, bitwise self-correction (arXiv 2412.04431, section 3.4): each scale draws a share of 0, 1, ...
        `flip` x 100 percent, and so many of the bits that the transformer sees are turned round, not those it is to
        predict; the finer scales' bits mend what the turned ones have spoilt.

        Args:
            features: Raw features, shape (B, code bits, height, width) of the schedule's final grid.
            schedule: Of tokens.
            flip: The largest share of turned bits, 0 to 1.
            num_flip_scales: In how many of the coarsest scales; None is all.
            generator: Draws the flips, on the CPU.

        Raises:
            ShapeError: The features are not as large as the schedule's final grid.
            ConfigError: `flip` is not a share.
        """
        cells = self._cells(schedule)
        self._check(features, cells)
        if not 0 <= flip <= 1:
            raise ConfigError(f"flip is {flip}", do="give a share of the bits, 0 to 1")
        num_flip_scales = schedule.num_scales if num_flip_scales is None else num_flip_scales
        features = features.float()
        total = torch.zeros_like(features)
        bits, inputs = [], []
        for scale, grid in enumerate(cells.grids):
            rest = features - total
            signs = F.normalize(rest if scale + 1 == cells.num_scales else _shrink(rest, grid), dim=1) > 0
            bits.append(self._to_tokens(signs.to(torch.uint8)))
            if flip > 0 and scale < num_flip_scales:
                signs = signs ^ _draw_flips(signs, flip, generator)
            total = total + _resize(self._values(signs), cells.final_grid)
            if scale + 1 < cells.num_scales:
                inputs.append(self._to_tokens(_resize(total, cells.grids[scale + 1])))
        empty = features.new_zeros(features.size(0), 0, self.token_bits)
        return Codes(torch.cat(bits, 1), torch.cat(inputs, 1) if inputs else empty, total)

    def decode(self, bits: Tensor, schedule: Schedule) -> Tensor:
        """The features (B, code bits, height, width) that bits (B, L, D) of a whole schedule stand for."""
        total: Tensor | None = None
        for scale, span in enumerate(schedule.spans):
            total = self.add(total, bits[:, span], schedule, scale)
        assert total is not None
        return total

    def add(self, total: Tensor | None, bits: Tensor, schedule: Schedule, scale: int) -> Tensor:
        """The features so far, and those of one scale's bits (B, length, D)."""
        cells = self._cells(schedule)
        values = self._values(self._to_cells(bits, schedule.grids[scale]) > 0)
        values = _resize(values, cells.final_grid)
        return values if total is None else total + values

    def next_input(self, total: Tensor, schedule: Schedule, scale: int) -> Tensor:
        """What the transformer sees when it predicts a scale: the features so far as (B, length, D)."""
        return self._to_tokens(_resize(total, self._cells(schedule).grids[scale]))

    def quantize(self, features: Tensor, schedule: Schedule) -> Tensor:
        """The features that the bits stand for, with the gradient of the identity, to train a tokenizer.

        The straight-through estimate of arXiv 2406.07548: a scale's values are +-1/sqrt(code bits) forward and the
        direction of what was left backward, where what the coarser scales took counts as constant.

        Args:
            features: Shape (B, code bits, height, width) of the schedule's final grid.
            schedule: Of tokens.
        """
        cells = self._cells(schedule)
        self._check(features, cells)
        total = torch.zeros_like(features)
        for scale, grid in enumerate(cells.grids):
            rest = features - total.detach()
            direction = F.normalize(rest if scale + 1 == cells.num_scales else _shrink(rest, grid), dim=1)
            values = direction + (self._values(direction > 0) - direction).detach()
            total = total + _resize(values, cells.final_grid)
        return total

    def _cells(self, schedule: Schedule) -> Schedule:
        return schedule.scaled(_PATCH) if self.patchify else schedule

    def _check(self, features: Tensor, cells: Schedule) -> None:
        expected = (self.code_bits, *cells.final_grid)
        if features.dim() != 4 or tuple(features.shape[1:]) != expected:
            raise ShapeError("raw features", expected=("B", *expected), actual=tuple(features.shape))

    def _values(self, signs: Tensor) -> Tensor:
        return (2.0 * signs - 1) / sqrt(self.code_bits)

    def _to_tokens(self, cells: Tensor) -> Tensor:
        cells = F.pixel_unshuffle(cells, _PATCH) if self.patchify else cells
        return cells.flatten(2).transpose(1, 2)

    def _to_cells(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        cells = tokens.transpose(1, 2).unflatten(2, grid)
        return F.pixel_shuffle(cells, _PATCH) if self.patchify else cells


def _shrink(features: Tensor, grid: tuple[int, int]) -> Tensor:
    return F.interpolate(features, size=grid, mode="area")


def _resize(features: Tensor, grid: tuple[int, int]) -> Tensor:
    return features if features.shape[-2:] == grid else F.interpolate(features, size=grid, mode="bilinear")


def _draw_flips(signs: Tensor, flip: float, generator: torch.Generator | None) -> Tensor:
    share = int(torch.randint(0, int(100 * flip) + 1, (), generator=generator)) / 100
    return (torch.rand(signs.shape, generator=generator) < share).to(signs.device)
