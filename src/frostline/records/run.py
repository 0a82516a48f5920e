"""What a training run did."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Component:
    """One part of a model, as a run's header lists it.

    Attributes:
        name: What the field calls it.
        num_parameters: All its parameters.
        num_trainable: Those that train.
        mode: ``train``, ``eval``, or empty for what is not a module.
        note: Where it lives, or what is particular about it.
    """

    name: str
    num_parameters: int
    num_trainable: int
    mode: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One step of one phase: one optimizer update, however many micro-batches fed it.

    Attributes:
        phase: The phase's name.
        step: How many steps the phase has made, this one included.
        loss: The loss that was minimised, averaged over the global batch by weight.
        terms: Its terms by name, averaged in the same way.
        learning_rate: Of the phase's first parameter group, as used in this step.
        gradient_norm: Global L2 norm of the phase's gradients before clipping.
        loss_scale: The gradient scaler's factor in this step; 1 without fp16.
        skipped: Whether a non-finite gradient made the scaler skip the update.
        num_skipped: Updates of this phase skipped so far.
        allocated_bytes: Bytes the allocator had handed out after the step; 0 on the CPU, which has no counter.
        reserved_bytes: Bytes the caching allocator held; 0 on the CPU.
        peak_bytes: The step's peak: the allocator's on CUDA, the last measured one on the CPU, 0 if unknown.
        data_seconds: Waiting for the batch.
        step_seconds: Everything else of the step.
    """

    phase: str
    step: int
    loss: float
    terms: dict[str, float]
    learning_rate: float
    gradient_norm: float
    loss_scale: float
    skipped: bool
    num_skipped: int
    allocated_bytes: int
    reserved_bytes: int
    peak_bytes: int
    data_seconds: float
    step_seconds: float


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """A whole run.

    Attributes:
        system: The system's name.
        num_steps: Steps made in all, those before a resume included.
        num_trainable: Parameters that trained.
        num_frozen: Parameters that did not.
        first: The first step of each phase in this session.
        last: The last step of each phase.
        wall_seconds: Of this session.
        interrupted: Whether it ended before its last step, with its state saved.
        directory: Where checkpoint, configuration and log lie.
    """

    system: str
    num_steps: int
    num_trainable: int
    num_frozen: int
    first: tuple[StepRecord, ...]
    last: tuple[StepRecord, ...]
    wall_seconds: float
    interrupted: bool
    directory: str
