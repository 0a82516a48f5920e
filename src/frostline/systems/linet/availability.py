"""Which samples have which streams: what data lacks, and what training takes away on purpose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from frostline.errors import ConfigError, DataError, ShapeError

Sampler = Literal["one_of_n", "independent", "subsets", "fixed_count"]
"""What a sample loses, see `draw_availability`."""

Ramp = Literal["up", "down"]
"""Where the rate comes from: from 0, or from 1."""


@dataclass(frozen=True, kw_only=True)
class ModalityDropout:
    """How often training takes streams away.

    Attributes:
        sampler: What a sample loses.
        rate: The final rate, 0 to 1.
        start: The first epoch that is not at the initial rate.
        ramp: Epochs over which the rate becomes the final one; 0 for at once.
        schedule: Whether the initial rate is 0 or 1.
    """

    sampler: Sampler = "one_of_n"
    rate: float = 0.2
    start: int = 0
    ramp: int = 20
    schedule: Ramp = "up"

    def __post_init__(self) -> None:
        _check_rate(self.rate)
        for value, kind in ((self.sampler, Sampler), (self.schedule, Ramp)):
            if value not in get_args(kind):
                raise ConfigError(f"no modality dropout of kind {value!r}", do=f"choose of {', '.join(get_args(kind))}")

    def rate_at(self, epoch: int) -> float:
        """The rate in an epoch, counted from 0.

        The first epoch of the ramp is one step along it already.
        """
        initial = 0.0 if self.schedule == "up" else 1.0
        if epoch < self.start:
            return initial
        progress = 1.0 if self.ramp <= 0 else min(1.0, (epoch - self.start + 1) / self.ramp)
        return initial + progress * (self.rate - initial)

    def draw(
        self, batch_size: int, num_streams: int, epoch: int, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """An epoch's availability ``(B, N)`` of one batch; see `draw_availability`."""
        return draw_availability(self.sampler, batch_size, num_streams, self.rate_at(epoch), generator=generator)


def draw_availability(
    sampler: Sampler,
    batch_size: int,
    num_streams: int,
    rate: float,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw which samples keep which streams; each keeps one at least.

    - ``one_of_n``: with probability `rate` a sample loses one stream, all equally likely (the published way).
    - ``independent``: each stream is lost with probability `rate` by itself; a sample that would lose all keeps
      one, all equally likely.
    - ``subsets``: with probability `rate` a sample keeps one of the 2^N - 1 subsets that are not empty, all equally
      likely, so perhaps all.
    - ``fixed_count``: of each batch, ``round(rate * B)`` samples lose one stream, the streams in turn. Every
      batch of one size then has the same number of rows in each stream: the peak and the shapes are known.

    Args:
        sampler: Which of them.
        batch_size: Samples.
        num_streams: Streams; a single one is never lost.
        rate: 0 to 1.
        generator: Of the random numbers, on the CPU.

    Returns:
        ``(B, N)`` bool on the CPU, where reading it waits for nobody.
    """
    _check_rate(rate)
    available = torch.ones(batch_size, num_streams, dtype=torch.bool)
    if num_streams == 1 or batch_size == 0:
        return available
    if sampler == "independent":
        available = torch.rand(batch_size, num_streams, generator=generator) >= rate
        return _keep_one(available, torch.ones_like(available), generator)
    if sampler == "fixed_count":
        hit = torch.randperm(batch_size, generator=generator)[: round(rate * batch_size)]
        available[hit, torch.arange(len(hit)) % num_streams] = False
        return available
    hit = torch.rand(batch_size, generator=generator) < rate
    if sampler == "subsets":
        subset = torch.randint(1, 2**num_streams, (batch_size, 1), generator=generator)
        kept = (subset >> torch.arange(num_streams)) & 1 == 1
        return kept | ~hit.unsqueeze(1)
    lost = torch.randint(num_streams, (batch_size,), generator=generator)
    available[hit.nonzero().flatten(), lost[hit]] = False
    return available


def merge_availability(real: Tensor, drawn: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """What is there and was not taken away; a sample that would keep nothing keeps one of the streams it has.

    Args:
        real: What the data has, ``(B, N)`` bool.
        drawn: What training leaves, likewise, on the same device.
        generator: Of the choice of what is kept, on the CPU.

    Raises:
        ShapeError: The two do not agree.
        DataError: A sample has no stream to begin with.
    """
    if real.shape != drawn.shape:
        raise ShapeError("drawn availability", expected=tuple(real.shape), actual=tuple(drawn.shape))
    if not bool(real.any(1).all()):
        row = int((~real.any(1)).nonzero()[0])
        raise DataError(f"sample {row} of the batch has no stream at all", do="leave such samples out")
    return _keep_one(real & drawn, real, generator)


def _keep_one(available: Tensor, real: Tensor, generator: torch.Generator | None) -> Tensor:
    """Give a row without any stream one of those that are real."""
    order = torch.rand(available.shape, generator=generator).to(real.device).masked_fill(~real, -1.0)
    chosen = torch.nn.functional.one_hot(order.argmax(1), available.shape[1]).bool()
    return available | (chosen & ~available.any(1, keepdim=True))


def _check_rate(rate: float) -> None:
    if not 0 <= rate <= 1:
        raise ConfigError(f"a modality dropout rate of {rate}", do="give a share from 0 to 1")
