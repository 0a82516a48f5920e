"""What `LINet.fit` did, epoch by epoch."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class StreamRecord:
    """One stream in one epoch. Scores are None where nobody asked for them.

    Attributes:
        stream: Its number.
        frozen: Whether it stands still from now on.
        learning_rate: Of its weights in the last step; None where it has no parameter group of its own.
        alone_train_accuracy: With this stream and no other, on training samples.
        alone_val_loss: Likewise, on validation samples.
        alone_val_accuracy: Likewise.
        without_val_accuracy: With every stream but this one. Of two streams it is the other one's `alone` score.
        gradient_norm: L2 norm of its gradient, the mean over the steps that were looked at.
        integration_norm: L2 norm of the weights that integrate it.
    """

    stream: int
    frozen: bool
    learning_rate: float | None = None
    alone_train_accuracy: float | None = None
    alone_val_loss: float | None = None
    alone_val_accuracy: float | None = None
    without_val_accuracy: float | None = None
    gradient_norm: float | None = None
    integration_norm: float | None = None


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One epoch. All means are over samples, whatever the size of their batches.

    Attributes:
        epoch: Its number, from 0.
        num_steps: Updates made.
        num_skipped: Those the loss scaler skipped.
        train_loss: What was minimised, the balance term included.
        train_accuracy: Under modality dropout, while the weights moved.
        val_loss: Classification loss on validation samples; None without any.
        val_accuracy: Likewise.
        learning_rates: Of each parameter group in the last step.
        gradient_norm: Mean over the steps, before clipping.
        balance_loss: Mean of the balance term; None where it has no weight.
        modality_dropout_rate: Of this epoch.
        missing_shares: Share of the training samples without each stream, genuinely missing ones included.
        streams: One record a stream.
        wall_seconds: Of the epoch, with all its evaluations.
    """

    epoch: int
    num_steps: int
    num_skipped: int
    train_loss: float
    train_accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    learning_rates: dict[str, float]
    gradient_norm: float
    balance_loss: float | None
    modality_dropout_rate: float
    missing_shares: tuple[float, ...]
    streams: tuple[StreamRecord, ...]
    wall_seconds: float


@dataclass(frozen=True, kw_only=True)
class History:
    """A whole `fit`.

    Attributes:
        epochs: One record an epoch.
        best_epoch: Whose monitored score was the best; None where nothing was monitored.
        restored: Whether the network ends with that epoch's weights; frozen streams keep those of their own best.
        stopped: Why it ended before its last epoch; empty if it did not.
        frozen_at: The epoch after which each stream that stands still was frozen.
        restored_stream_epochs: The epoch whose weights each of these was given.
    """

    epochs: tuple[EpochRecord, ...]
    best_epoch: int | None = None
    restored: bool = False
    stopped: str = ""
    frozen_at: dict[int, int] = field(default_factory=dict)
    restored_stream_epochs: dict[int, int] = field(default_factory=dict)

    def column(self, name: str, stream: int | None = None) -> list[Any]:
        """One quantity over the epochs, by its attribute's name; a stream's, if one is named."""
        return [getattr(epoch if stream is None else epoch.streams[stream], name) for epoch in self.epochs]

    def to_json(self) -> str:
        """The record as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1)
