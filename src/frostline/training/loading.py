"""Batches in an order that depends on nothing but the seed and the step."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar, cast

import numpy as np
import torch
from torch.utils.data import DataLoader

from frostline.config import DataConfig
from frostline.errors import ConfigError, DataError, FrostlineError
from frostline.training.group import Group

_MAX_WORKERS = 4


class Sample(NamedTuple):
    """Which example: everything random about it is a function of these two and the data set's seed.

    Mix them with ``numpy.random.default_rng((seed, index, epoch))``: of a seed, torch's CPU generator reads
    the low 32 bits alone.
    """

    index: int  # type: ignore[assignment]  # of the data set, hiding tuple.index
    epoch: int


class Batch(Protocol):
    """What `collate` makes of a micro-batch's examples: tensors on the host."""

    def to(self, device: torch.device, non_blocking: bool) -> Self:
        """The same batch on a device."""
        ...

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory; called only when training on CUDA."""
        ...


B = TypeVar("B", bound=Batch)


class Dataset(Protocol):
    """A data set that is asked for a whole list of examples at once."""

    def __len__(self) -> int: ...

    def __getitems__(self, samples: list[Sample]) -> list[Any]:
        """The examples, in the given order."""
        ...


class BatchStream(Generic[B]):
    """Endless steps of micro-batches, the same for any number of workers and after any resume.

    Epoch e visits the permutation that (seed, e) gives, `batch_size` rows a step; process r takes every
    `world_size`-th of them from the r-th on and cuts them into micro-batches. Rows that fill no whole batch
    are left out of their epoch. A data set smaller than a batch is one batch.

    Args:
        dataset: Pickled to each worker where processes are spawned.
        collate: Examples -> `Batch`; a module-level function.
        data: Number of workers and how far they run ahead, in steps.
        batch_size: Rows a step sees over all processes and micro-batches.
        gradient_accumulation_steps: Micro-batches a process cuts its rows into.
        seed: Of the order.
        group: This process's place.

    Raises:
        DataError: The data set is empty.
        ConfigError: Too many workers, or a batch too small to give every micro-batch a row.
    """

    def __init__(
        self,
        dataset: Dataset,
        collate: Callable[[list[Any]], B],
        *,
        data: DataConfig,
        batch_size: int,
        gradient_accumulation_steps: int,
        seed: int,
        group: Group,
    ) -> None:
        self._dataset, self._seed, self._group, self._data = dataset, seed, group, data
        self._collate = _Cut(collate, gradient_accumulation_steps)
        self._batch_size = min(batch_size, len(dataset))
        if not len(dataset):
            raise DataError("the data set is empty")
        if self._batch_size < gradient_accumulation_steps * group.world_size:
            raise ConfigError(
                f"a batch of {self._batch_size} cannot be cut into {gradient_accumulation_steps}"
                f" micro-batches on each of {group.world_size} processes",
                where=f"training.batch_size is {batch_size}, the data set has {len(dataset)} examples",
                do=f"take at least {gradient_accumulation_steps * group.world_size}, or accumulate fewer",
            )
        if data.num_workers > _MAX_WORKERS and not data.force_num_workers:
            raise ConfigError(
                f"data.num_workers is {data.num_workers}: more than {_MAX_WORKERS} seldom load faster, and"
                f" each holds a copy of the data set and {data.prefetch_factor} batches in host memory",
                do="take 2 to 4 from an SSD, 1 or 2 from a hard disk, or add --data.force-num-workers",
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the data set."""
        return len(self._dataset) // self._batch_size

    def samples(self, start_step: int) -> Iterator[list[Sample]]:
        """This process's samples, step after step from `start_step` on."""
        first_epoch, first_step = divmod(start_step, self.steps_per_epoch)
        for epoch in itertools.count(first_epoch):
            order = np.random.default_rng((self._seed % 2**64, epoch)).permutation(len(self._dataset))
            for step in range(first_step if epoch == first_epoch else 0, self.steps_per_epoch):
                rows = order[step * self._batch_size : (step + 1) * self._batch_size]
                yield [Sample(int(row), epoch) for row in rows[self._group.rank :: self._group.world_size]]

    def iterate(self, start_step: int) -> Generator[tuple[B, ...], None, None]:
        """Each step's micro-batches on the host, from `start_step` on; close it to end the workers."""
        has_workers = self._data.num_workers > 0
        loader: DataLoader[Any] = DataLoader(
            cast(Any, _Reporting(self._dataset)),
            batch_sampler=cast(Any, self.samples(start_step)),
            collate_fn=self._collate,
            num_workers=self._data.num_workers,
            prefetch_factor=self._data.prefetch_factor if has_workers else None,
            worker_init_fn=_leave_signals_to_the_trainer if has_workers else None,
            pin_memory=self._group.device.type == "cuda",
            generator=torch.Generator(),  # else making the iterator draws from the global state, also on a resume
        )
        batches: Any = iter(loader)
        try:
            for batch in batches:
                if isinstance(batch, FrostlineError):
                    raise batch
                yield batch
        finally:
            if has_workers:  # an error's traceback would keep them waiting, and the process waits for them at exit
                batches._shutdown_workers()


@dataclass(frozen=True)
class _Reporting:
    """A data set whose errors travel home as values: torch would bury them in a worker's traceback."""

    dataset: Dataset

    def __getitems__(self, samples: list[Sample]) -> list[Any] | FrostlineError:
        try:
            return self.dataset.__getitems__(samples)
        except FrostlineError as error:
            return error


@dataclass(frozen=True)
class _Cut:
    """Examples of a step -> its micro-batches."""

    collate: Callable[[list[Any]], Batch]
    num_parts: int

    def __call__(self, examples: list[Any] | FrostlineError) -> tuple[Batch, ...] | FrostlineError:
        if isinstance(examples, FrostlineError):
            return examples
        return tuple(self.collate(examples[part :: self.num_parts]) for part in range(self.num_parts))


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Ctrl-C reaches the whole process group; workers must outlive it for the step and the save to finish."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
