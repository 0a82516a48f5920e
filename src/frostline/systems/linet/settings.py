"""What `LINet.fit` can be asked for."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch.optim import Optimizer

from frostline.errors import ConfigError
from frostline.systems.linet.availability import ModalityDropout, Sampler
from frostline.systems.linet.history import EpochRecord
from frostline.systems.linet.network import Statistics
from frostline.systems.linet.objectives import Objective
from frostline.systems.linet.stopping import Monitor
from frostline.training import Precision

if TYPE_CHECKING:
    from frostline.systems.linet.network import LINet

Scheduler = Literal["constant", "cosine", "onecycle", "plateau"]
Callback = Callable[["LINet", EpochRecord], bool | None]
"""Told of every epoch; True ends the training."""
_SCHEDULES: dict[str, Literal["up", "down"]] = {"up": "up", "ramp_up": "up", "down": "down", "ramp_down": "down"}


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How to train.

    Attributes:
        epochs: Passes over the training loader.
        optimizer: torch's, with any groups (see `parameter_groups`), or the name of one that is made here.
        learning_rate: Of one that is made here; what normalises is not decayed.
        weight_decay: Likewise.
        loss: Of the classifier.
        label_smoothing: Of the loss.
        focal_gamma: Of the focal loss.
        scheduler: Factor on every group's own rate. ``onecycle`` and ``cosine`` change with every step; ``plateau``
            follows the monitored score.
        warmup_steps: Steps of a linear rise, but for ``onecycle``, which has its own.
        plateau_factor: Of each reduction.
        plateau_patience: Epochs without a better score before one.
        precision: Autocast type.
        norm_stats: Mean and standard deviation of each stream's values in 0..1, for loaders that yield uint8 images;
            kept by the network.
        callbacks: Told of every epoch, after it.
        verbose: A line an epoch on standard error.
        save_path: Where the weights of the best epoch go (of every epoch without a validation loader), for
            ``torch.load``.
        early_stopping: End after `patience` epochs without a better score.
        patience: Of the whole network.
        min_delta: By how much a score must be better.
        monitor: The score, of the network and of each stream.
        restore_best_weights: End with the weights of the best epoch, where anything stops early.
        gradient_accumulation_steps: Batches an update sees; each sample counts the same, also in a last, shorter turn.
        grad_clip_norm: Largest L2 norm of the gradient; None leaves it as it is.
        clear_cache_per_epoch: Give CUDA's cached memory back after each epoch.
        stream_monitoring: Score each stream alone, and the network without it.
        stream_eval_samples: Samples that each of these scores sees.
        stream_eval_freq: Epochs between two of them.
        stream_early_stopping: Freeze each stream that is no longer getting better by itself, at its best weights;
            when all are frozen, training ends.
        stream_patience: Epochs of it, for all streams or one number a stream.
        stream_min_delta: By how much a stream's score must be better.
        modality_dropout: Take streams away in training.
        modality_dropout_start: See `ModalityDropout`, like the next four.
        modality_dropout_ramp: Epochs of the ramp.
        modality_dropout_rate: The final rate.
        modality_dropout_schedule: ``up`` or ``down``.
        modality_dropout_sampler: What a sample loses.
        stream_balance_weight: Of the term that keeps streams equally loud; see `BalanceLoss`.
        stream_balance_layer: The stage it looks at.
        gradient_monitoring: Note the norm of each stream's gradient, as the optimizer sees it.
        gradient_log_freq: Steps between two such notes.
        track_integration_weights: Note the norm of the weights that integrate each stream.
        integration_snapshot_path: A directory for copies of these weights.
        integration_snapshot_freq: Epochs between two copies.

    Raises:
        ConfigError: A value that makes no sense.
    """

    epochs: int = 10
    optimizer: Optimizer | Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    loss: Objective = "cross_entropy"
    label_smoothing: float = 0.0
    focal_gamma: float = 2.0
    scheduler: Scheduler | None = None
    warmup_steps: int = 0
    plateau_factor: float = 0.5
    plateau_patience: int = 5
    precision: Precision = "32-true"
    norm_stats: Sequence[Statistics] | None = None
    callbacks: Sequence[Callback] | None = None
    verbose: bool = True
    save_path: str | Path | None = None
    early_stopping: bool = False
    patience: int = 10
    min_delta: float = 0.001
    monitor: Monitor = "val_loss"
    restore_best_weights: bool = True
    gradient_accumulation_steps: int = 1
    grad_clip_norm: float | None = None
    clear_cache_per_epoch: bool = False
    stream_monitoring: bool = False
    stream_eval_samples: int = 500
    stream_eval_freq: int = 1
    stream_early_stopping: bool = False
    stream_patience: int | Sequence[int] = 10
    stream_min_delta: float = 0.001
    modality_dropout: bool = False
    modality_dropout_start: int = 0
    modality_dropout_ramp: int = 20
    modality_dropout_rate: float = 0.2
    modality_dropout_schedule: Literal["up", "down", "ramp_up", "ramp_down"] = "up"
    modality_dropout_sampler: Sampler = "one_of_n"
    stream_balance_weight: float = 0.0
    stream_balance_layer: str = "layer4"
    gradient_monitoring: bool = False
    gradient_log_freq: int = 50
    track_integration_weights: bool = False
    integration_snapshot_path: str | Path | None = None
    integration_snapshot_freq: int = 1

    def __post_init__(self) -> None:
        choices = {"loss": Objective, "scheduler": Scheduler, "monitor": Monitor, "precision": Precision}
        for name, kind in choices.items():
            value = getattr(self, name)
            if value not in get_args(kind) and not (name == "scheduler" and value is None):
                raise ConfigError(f"{name} is {value!r}", where="fit", do=f"choose of {', '.join(get_args(kind))}")
        if self.modality_dropout_schedule not in _SCHEDULES:
            raise ConfigError(
                f"modality_dropout_schedule is {self.modality_dropout_schedule!r}", where="fit", do="give up or down"
            )
        for name in ("epochs", "gradient_accumulation_steps", "stream_eval_freq", "gradient_log_freq",
                     "integration_snapshot_freq", "stream_eval_samples"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", where="fit", do="give 1 or more")

    @property
    def dropout(self) -> ModalityDropout | None:
        """The modality dropout that is asked for."""
        if not self.modality_dropout:
            return None
        return ModalityDropout(
            sampler=self.modality_dropout_sampler,
            rate=self.modality_dropout_rate,
            start=self.modality_dropout_start,
            ramp=self.modality_dropout_ramp,
            schedule=_SCHEDULES[self.modality_dropout_schedule],
        )

    def patience_of(self, num_streams: int) -> tuple[int, ...]:
        """Each stream's.

        Raises:
            ConfigError: Another number of values than streams.
        """
        given = self.stream_patience
        listed = (given,) * num_streams if isinstance(given, int) else tuple(given)
        if len(listed) != num_streams:
            raise ConfigError(
                f"stream_patience has {len(listed)} values, the network {num_streams} streams",
                do="give one a stream, or one for all",
            )
        return listed


def read_settings(options: Mapping[str, Any]) -> FitSettings:
    """Settings from keyword arguments.

    Raises:
        ConfigError: One of them is not known, or its value makes no sense.
    """
    known = [field.name for field in dataclasses.fields(FitSettings)]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise ConfigError(
                f"fit has no option {name!r}", do=f"did you mean {near[0]!r}?" if near else "see FitSettings"
            )
    return FitSettings(**options)
