"""The loop: batches in, phases run, state saved."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from frostline.config import TrainingConfig
from frostline.errors import CheckpointError
from frostline.records import RunReport, StepRecord
from frostline.regions import load_trainable_state_, trainable_parameters, trainable_state
from frostline.training.checkpoint import Checkpoint, CheckpointStore, restore_rng_, rng_state
from frostline.training.group import Group
from frostline.training.interrupt import Interrupt
from frostline.training.loading import BatchStream
from frostline.training.log import RunLog
from frostline.training.phase import Phase, check_ownership
from frostline.training.recovery import Recovery, Relieve
from frostline.training.step import run_step


class System(Protocol):
    """What a run trains."""

    @property
    def name(self) -> str:
        """As in its configuration."""
        ...

    @property
    def model(self) -> nn.Module:
        """Holds every parameter the phases train."""
        ...

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Run in this order in every step, on the same batch."""
        ...

    def batches(self) -> BatchStream[Any]:
        """Where the micro-batches come from."""
        ...


@runtime_checkable
class Reviewed(Protocol):
    """What a system also has that looks at its own work during a run."""

    def review(self, step: int) -> None:
        """Called on the main process behind so many steps: before the first one too, and again where a run repeats it.

        Torch's generators are afterwards as they were; the model must be.
        """
        ...


@runtime_checkable
class Described(Protocol):
    """What a system also has whose trainables are a file in a format of its own."""

    def checkpoint_metadata(self, step: int) -> dict[str, str]:
        """The metadata of the trainables' file behind so many steps."""
        ...


class Observer(Protocol):
    """Who is told how it goes, on the main process."""

    def started(self, total_steps: int, first_step: int) -> None:
        """The run begins behind step `first_step`."""
        ...

    def stepped(self, record: StepRecord) -> None:
        """A phase made a step."""
        ...

    def warned(self, text: str) -> None:
        """Something is odd."""
        ...

    def saved(self, path: Path) -> None:
        """A checkpoint is complete."""
        ...


def run(
    system: System,
    settings: TrainingConfig,
    *,
    group: Group,
    store: CheckpointStore,
    config_text: str,
    log: RunLog,
    observer: Observer,
    resume: bool = False,
    known_peak_bytes: int = 0,
    relieve: Relieve | None = None,
) -> RunReport:
    """Train a system to its last step, or to the first SIGINT or SIGTERM; saved either way.

    Resuming is EXACT: parameters, buffers, optimizers, scalers, torch's generators and the order of the data
    go on as if the run had never stopped, on as many processes as wrote the checkpoint. Buffers that training
    changes are the main process's everywhere, so one copy of them is enough.

    An error is passed on as it is: gradients are released, the log is closed, and the last checkpoint stands to
    resume from. So is `torch.OutOfMemoryError`, but for `relieve`: with it the step is undone and made again.

    Args:
        system: Its model is put into training mode; what is frozen stays in eval mode.
        settings: Number of steps, seed, and how often to log and to save.
        group: All processes call this together.
        store: Where the checkpoint lies.
        config_text: Saved with the checkpoint.
        log: Started and closed here.
        observer: Told on the main process only.
        resume: Continue from the checkpoint, which must be there.
        known_peak_bytes: The step's measured peak, for records on devices that count none.
        relieve: Called when a step has run out of memory and was undone, to make the steps to come smaller without
            another gradient; it raises if it cannot. Left aside on several processes.

    Raises:
        ConfigError: Two optimizers hold one parameter, or a phase trains what is not the model's.
        CheckpointError: There is nothing to resume from, or it does not fit.
        StepError: A step cannot be made.
    """
    started = time.perf_counter()
    trainables = trainable_parameters(system.model)
    check_ownership(system.phases, trainables)
    system.model.train()
    recovery = Recovery(system.model, group, relieve) if relieve is not None and group.world_size == 1 else None
    step = first_step = _resume(system, store, group) if resume else _begin(system, settings.seed, group)
    first: tuple[StepRecord, ...] = ()
    last: tuple[StepRecord, ...] = ()
    stop = False
    with Interrupt() as interrupt, closing(log), closing(system.batches().iterate(first_step)) as batches:
        if group.is_main:
            log.start(first_step)
            observer.started(settings.num_steps, first_step)
        if first_step == 0:
            _review(system, first_step, group)
        while step < settings.num_steps and not stop:
            waiting = time.perf_counter()
            micro_batches = next(batches)
            waited = time.perf_counter() - waiting
            last = tuple(
                run_step(phase, micro_batches, group) if recovery is None else recovery.run_step(phase, micro_batches)
                for phase in system.phases
            )
            last = (replace(last[0], data_seconds=waited), *last[1:])  # one wait feeds all phases
            last = tuple(replace(record, peak_bytes=record.peak_bytes or known_peak_bytes) for record in last)
            first, step = first or last, step + 1
            group.broadcast_(_buffers(system.model))
            if group.is_main:
                _tell(last, log, observer)
            _review(system, step, group)
            stop = group.total(interrupt.requested) > 0  # one process's signal stops all at the same step
            if stop or step == settings.num_steps or step % settings.checkpoint_every == 0:
                _save(system, step, store, group, config_text, observer)
    return RunReport(
        system=system.name,
        num_steps=step,
        num_trainable=sum(parameter.numel() for parameter in trainables.values()),
        num_frozen=sum(p.numel() for p in system.model.parameters() if not p.requires_grad),
        first=first,
        last=last,
        wall_seconds=time.perf_counter() - started,
        interrupted=step < settings.num_steps,
        directory=str(store.directory),
    )


def _begin(system: System, seed: int, group: Group) -> int:
    """Seed each process for itself, so that noise differs between them, and start from the same values."""
    torch.manual_seed(int(np.random.SeedSequence((seed % 2**64, group.rank)).generate_state(1)[0]))
    group.broadcast_(trainable_state(system.model).values())
    return 0


def _resume(system: System, store: CheckpointStore, group: Group) -> int:
    if not group.is_main:
        group.barrier()  # the main process may have a save to finish
    checkpoint = store.load()
    if group.is_main:
        group.barrier()
    names = [phase.name for phase in system.phases]
    if sorted(checkpoint.phases) != sorted(names):
        raise CheckpointError(
            f"the checkpoint is of the phases {sorted(checkpoint.phases)}, the run has {sorted(names)}",
            where=str(store.directory),
        )
    if len(checkpoint.rng) != group.world_size:
        raise CheckpointError(
            f"the checkpoint is of {len(checkpoint.rng)} processes, the run has {group.world_size}",
            where=str(store.directory),
            do=f"resume with torchrun --nproc-per-node {len(checkpoint.rng)}",
        )
    load_trainable_state_(system.model, checkpoint.trainables)
    for phase in system.phases:
        phase.load_state_dict(checkpoint.phases[phase.name])
    restore_rng_(checkpoint.rng[group.rank], group.device)
    return checkpoint.step


def _review(system: System, step: int, group: Group) -> None:
    if group.is_main and isinstance(system, Reviewed):
        rng = rng_state(group.device)
        system.review(step)
        restore_rng_(rng, group.device)


def _save(
    system: System, step: int, store: CheckpointStore, group: Group, config_text: str, observer: Observer
) -> None:
    rng = group.gather(rng_state(group.device))
    if group.is_main:
        checkpoint = Checkpoint(
            step=step,
            trainables=trainable_state(system.model),
            phases={phase.name: phase.state_dict() for phase in system.phases},
            rng=rng,
            config_text=config_text,
            metadata=system.checkpoint_metadata(step) if isinstance(system, Described) else {},
        )
        observer.saved(store.save(checkpoint))
    group.barrier()


def _buffers(model: nn.Module) -> Iterator[Tensor]:
    """Lazily: a process alone has nobody to send them to, and never walks the model."""
    trainables = trainable_parameters(model)
    yield from (tensor for name, tensor in trainable_state(model).items() if name not in trainables)


def _tell(records: tuple[StepRecord, ...], log: RunLog, observer: Observer) -> None:
    for record in records:
        observer.stepped(record)
        for text in log.add(record):
            observer.warned(text)
