"""A step that ran out of memory is undone, relieved and made again."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

import torch
from torch import nn

from frostline.records import StepRecord
from frostline.regions import trainable_parameters, trainable_state
from frostline.training.checkpoint import restore_rng_, rng_state
from frostline.training.group import Group
from frostline.training.loading import Batch
from frostline.training.phase import Phase
from frostline.training.step import run_step

Relieve = Callable[[str], None]
"""Told what torch said; makes the steps to come smaller, or raises if it cannot."""


class Recovery:
    """Repeats a step that ran out of memory on the same batch, from the state that it started from.

    What a step changes before its update is put back: gradients are released, and buffers and random generators get
    their values again. Parameters, optimizers and the scaler change in the update alone, and a failure there is a
    `StepError`: nothing may be repeated then.

    Args:
        model: Its buffers that training changes are copied before every step.
        group: This process; others cannot be told to repeat a step, so it must be alone.
        relieve: Called between two attempts, when the failed one's tensors are gone.
    """

    def __init__(self, model: nn.Module, group: Group, relieve: Relieve) -> None:
        self._model, self._group, self._relieve = model, group, relieve

    def run_step(self, phase: Phase, micro_batches: Sequence[Batch]) -> StepRecord:
        """`run_step`, as often as it takes."""
        random = rng_state(self._group.device)
        trained = trainable_parameters(self._model)
        buffers = [
            (buffer, buffer.clone()) for name, buffer in trainable_state(self._model).items() if name not in trained
        ]
        while True:
            try:
                return run_step(phase, micro_batches, self._group)
            except torch.OutOfMemoryError as error:
                said = str(error)
            # Behind the handler: the error's traceback held the failed step's tensors.
            for buffer, values in buffers:
                buffer.copy_(values)
            restore_rng_(random, self._group.device)
            gc.collect()
            if self._group.device.type == "cuda":
                torch.cuda.empty_cache()
            self._relieve(said)
