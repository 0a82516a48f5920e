"""Rotary position embedding in two dimensions, the same for every size of a picture."""

from __future__ import annotations

import torch
from torch import Tensor

from frostline.systems.ti.infinity.schedule import Schedule

_BASE = 10000.0


def rotations(schedule: Schedule, head_width: int, *, device: torch.device | str | None = None) -> Tensor:
    """How far each token's pairs of values turn, as complex numbers of absolute value 1.

    The first half of the pairs turns with the row, the second with the column; cell i of n along an axis stands at
    ``round(i * reference / n)`` of the schedule's reference grid (arXiv 2412.04431; the published code's mode 2).

    Args:
        schedule: Of L tokens.
        head_width: Values of a head, a multiple of 4.
        device: Where to make them.

    Returns:
        Shape (L, head_width / 2), complex64.
    """
    num_frequencies = head_width // 4
    steps = torch.arange(num_frequencies, device=device, dtype=torch.float32)
    frequencies = _BASE ** (-2 * steps / (head_width // 2))
    angles = []
    for height, width in schedule.grids:
        rows = _positions(height, schedule.reference[0], frequencies)[:, None].expand(height, width, -1)
        columns = _positions(width, schedule.reference[1], frequencies)[None].expand(height, width, -1)
        angles.append(torch.cat([rows, columns], -1).flatten(0, 1))
    turned = torch.cat(angles)
    return torch.polar(torch.ones_like(turned), turned)


def rotate(pairs: Tensor, turns: Tensor) -> Tensor:
    """Turn neighbouring values of ``pairs`` (..., L, head width) by ``turns`` (L, head width / 2)."""
    turned = torch.view_as_complex(pairs.unflatten(-1, (-1, 2))) * turns
    return torch.view_as_real(turned).flatten(-2)


def _positions(num_cells: int, reference: int, frequencies: Tensor) -> Tensor:
    cells = torch.arange(num_cells, device=frequencies.device) * (reference / num_cells)
    return cells.round()[:, None] * frequencies
