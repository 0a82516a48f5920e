"""Train a network on loaders: the original's `fit`, on the engine that every system trains on."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Sequence, Sized
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from frostline.errors import ConfigError, DataError
from frostline.records import StepRecord
from frostline.systems.linet.batches import Batch, read_batches, take_away
from frostline.systems.linet.groups import is_decayed
from frostline.systems.linet.history import EpochRecord, History
from frostline.systems.linet.monitoring import (
    GradientNorms,
    StreamScores,
    integration_norms,
    learning_rates,
    save_integration,
    score_streams,
    stream_records,
)
from frostline.systems.linet.network import LINet
from frostline.systems.linet.objectives import BalanceLoss, classification_loss
from frostline.systems.linet.scoring import Scores, score
from frostline.systems.linet.settings import FitSettings
from frostline.systems.linet.stopping import BestWeights, Plateau, StreamStopping, monitored
from frostline.training import Group, Interrupt, Loss, Phase, Schedule, constant, cosine, one_cycle, run_step

_OPTIMIZERS = {"adamw": AdamW, "adam": Adam, "sgd": SGD}


def fit(
    model: LINet, train_loader: Iterable[object], val_loader: Iterable[object] | None, settings: FitSettings
) -> History:
    """Train; a first Ctrl-C ends it after the step, with all that was noted until then.

    Args:
        model: On the device where it is to be trained.
        train_loader: Of batches; see `read_batch`. It must have a length where the schedule looks at the end.
        val_loader: Likewise.
        settings: How.

    Raises:
        ConfigError: Something is monitored and there is no validation loader, or the settings do not fit the network.
        DataError: A loader yields nothing, or something else than batches.
    """
    watched = {
        "early_stopping": settings.early_stopping,
        "stream_early_stopping": settings.stream_early_stopping,
        "stream_monitoring": settings.stream_monitoring,
        "scheduler='plateau'": settings.scheduler == "plateau",
    }
    if val_loader is None and any(watched.values()):
        names = ", ".join(name for name, asked in watched.items() if asked)
        raise ConfigError(f"there is no validation loader for {names}", where="fit", do="give val_loader")
    if settings.norm_stats is not None:
        model.norm_stats = tuple(settings.norm_stats)
    return _Fit(model, train_loader, val_loader, settings).run()


class _Fit:
    def __init__(
        self,
        model: LINet,
        train_loader: Iterable[object],
        val_loader: Iterable[object] | None,
        settings: FitSettings,
    ) -> None:
        self.model, self.train_loader, self.val_loader, self.settings = model, train_loader, val_loader, settings
        self.group = Group(model.fc.weight.device)
        self.dropout = settings.dropout
        self.balance = BalanceLoss(model, settings.stream_balance_layer) if settings.stream_balance_weight else None
        self.norms = GradientNorms(model, settings.gradient_log_freq) if settings.gradient_monitoring else None
        self.schedule = _schedule(settings, train_loader)
        self.phase = Phase(
            "fit",
            self._loss,
            _num_samples,
            (_optimizer(model, settings),),
            schedule=self.schedule,
            device=self.group.device,
            clip_norm=settings.grad_clip_norm or 0.0,
            precision=settings.precision,
        )
        self.best = BestWeights(settings.monitor, settings.min_delta)
        patience = settings.patience_of(model.num_streams)
        self.stopping = StreamStopping(model, settings.monitor, patience, settings.stream_min_delta)
        self.records: list[EpochRecord] = []

    def run(self) -> History:
        """All epochs, or until something stops them."""
        settings, stopped = self.settings, ""
        with ExitStack() as stack:
            interrupt = stack.enter_context(Interrupt())
            if self.balance is not None:
                stack.enter_context(self.balance.watching())
            if self.norms is not None:
                stack.callback(self.norms.watch(self.phase.optimizers[0]).remove)
            for number in range(settings.epochs):
                stopped = self._run_epoch(number, interrupt)
                if stopped:
                    break
        ends_early = settings.early_stopping or settings.stream_early_stopping
        restored = ends_early and settings.restore_best_weights and self.best.restore_(self.model, self.stopping.states)
        return History(
            epochs=tuple(self.records),
            best_epoch=self.best.best.epoch if self.best.best.score is not None else None,
            restored=restored,
            stopped=stopped,
            frozen_at=self.stopping.frozen_at,
            restored_stream_epochs=self.stopping.restored,
        )

    def _run_epoch(self, number: int, interrupt: Interrupt) -> str:
        """Train, evaluate, note; why training ends with this epoch, if it does."""
        started, settings = time.perf_counter(), self.settings
        sums = self._train(number, interrupt)
        val = None
        if self.val_loader is not None:
            val = score(self.model, self.val_loader, precision=settings.precision)
        scores = self._score_streams(number)
        frozen = []
        if settings.stream_early_stopping:
            values = {stream: monitored(alone, settings.monitor) for stream, alone in scores.alone.items()}
            frozen = self.stopping.add(values, number)
        record = self._record(number, sums, val, scores, started)
        self.records.append(record)
        if settings.integration_snapshot_path is not None and not (number + 1) % settings.integration_snapshot_freq:
            save_integration(self.model, Path(settings.integration_snapshot_path), number)
        if settings.clear_cache_per_epoch and self.group.device.type == "cuda":
            torch.cuda.empty_cache()
        stopped = "interrupted" if interrupt.requested else self._judge(val, number)
        if settings.verbose:
            self._tell(record, frozen)
        asked = [callback(self.model, record) for callback in settings.callbacks or ()]
        return stopped or ("a callback asked for it" if any(asked) else "")

    def _train(self, number: int, interrupt: Interrupt) -> _Sums:
        self.model.train()
        sums = _Sums(self.model.num_streams)
        read = read_batches(self.train_loader, self.model.num_streams)
        batches = (take_away(batch, self.dropout, number) for batch in read)
        while turn := tuple(islice(batches, self.settings.gradient_accumulation_steps)):
            sums.add(run_step(self.phase, turn, self.group), turn)
            if interrupt.requested:
                break
        if not sums.steps:
            raise DataError("the training loader yields nothing")
        return sums

    def _loss(self, batch: Batch) -> Loss:
        settings = self.settings
        logits = self.model(batch.streams, batch.availability)
        loss = classification_loss(
            logits,
            batch.labels,
            kind=settings.loss,
            label_smoothing=settings.label_smoothing,
            focal_gamma=settings.focal_gamma,
        )
        terms = {"accuracy": (logits.detach().argmax(1) == batch.labels).float().mean()}
        if self.balance is None:
            return Loss(loss, terms)
        balance = self.balance.take(logits)
        return Loss(loss + settings.stream_balance_weight * balance, {**terms, "balance": balance})

    def _score_streams(self, number: int) -> StreamScores:
        settings = self.settings
        wanted = settings.stream_monitoring or settings.stream_early_stopping
        if not wanted or self.val_loader is None or (number + 1) % settings.stream_eval_freq:
            return StreamScores()
        return score_streams(
            self.model,
            self.val_loader,
            self.train_loader if settings.stream_monitoring else None,
            max_samples=settings.stream_eval_samples,
            precision=settings.precision,
        )

    def _judge(self, val: Scores | None, number: int) -> str:
        """Take the epoch's score; why training ends with it."""
        settings, best = self.settings, self.best
        value = None if val is None else monitored(val, settings.monitor)
        if value is not None and isinstance(self.schedule, Plateau):
            self.schedule.add(value, number)
        if (value is None or best.add(self.model, value, number)) and settings.save_path is not None:
            torch.save(self.model.state_dict(), settings.save_path)
        if settings.stream_early_stopping and self.stopping.all_frozen:
            return "all streams are frozen"
        if settings.early_stopping and best.best.num_worse > settings.patience:
            return f"{settings.monitor} has not been better for {best.best.num_worse} epochs"
        return ""

    def _record(
        self, number: int, sums: _Sums, val: Scores | None, scores: StreamScores, started: float
    ) -> EpochRecord:
        gradient_norms = {} if self.norms is None else self.norms.take()
        weights = integration_norms(self.model) if self.settings.track_integration_weights else {}
        optimizer, steps = self.phase.optimizers[0], sums.steps
        return EpochRecord(
            epoch=number,
            num_steps=len(steps),
            num_skipped=sum(step.skipped for step in steps),
            train_loss=sums.mean(lambda step: step.loss),
            train_accuracy=sums.mean(lambda step: step.terms["accuracy"]),
            val_loss=None if val is None else val.loss,
            val_accuracy=None if val is None else val.accuracy,
            learning_rates=learning_rates(optimizer),
            gradient_norm=sum(step.gradient_norm for step in steps) / len(steps),
            balance_loss=None if self.balance is None else sums.mean(lambda step: step.terms["balance"]),
            modality_dropout_rate=0.0 if self.dropout is None else self.dropout.rate_at(number),
            missing_shares=sums.missing_shares(),
            streams=stream_records(self.model, optimizer, scores, gradient_norms, weights),
            wall_seconds=time.perf_counter() - started,
        )

    def _tell(self, record: EpochRecord, frozen: Sequence[int]) -> None:
        parts = [
            f"epoch {record.epoch + 1}/{self.settings.epochs}",
            f"train loss {record.train_loss:.4f}, accuracy {record.train_accuracy:.3f}",
        ]
        if record.val_loss is not None:
            parts.append(f"validation loss {record.val_loss:.4f}, accuracy {record.val_accuracy:.3f}")
        for stream in record.streams:
            if stream.alone_val_accuracy is not None:
                without = stream.without_val_accuracy if len(record.streams) > 2 else None
                rest = "" if without is None else f", without it {without:.3f}"
                parts.append(f"stream {stream.stream} alone {stream.alone_val_accuracy:.3f}{rest}")
        parts += [
            f"stream {stream} is frozen as it was in epoch {self.stopping.restored[stream] + 1}" for stream in frozen
        ]
        sys.stderr.write("; ".join([*parts, f"{record.wall_seconds:.1f} s"]) + "\n")


@dataclass
class _Sums:
    """What the steps of an epoch add up to."""

    num_streams: int
    steps: list[StepRecord] = field(default_factory=list)
    num_samples: list[int] = field(default_factory=list)
    missing: list[Tensor] = field(default_factory=list)

    def add(self, step: StepRecord, batches: Sequence[Batch]) -> None:
        self.steps.append(step)
        self.num_samples.append(sum(map(len, batches)))
        self.missing += [(~batch.availability).sum(0) for batch in batches if batch.availability is not None]

    def mean(self, value: Any) -> float:
        pairs = zip(self.steps, self.num_samples, strict=True)
        return float(sum(value(step) * num for step, num in pairs)) / sum(self.num_samples)

    def missing_shares(self) -> tuple[float, ...]:
        none = torch.zeros(self.num_streams, dtype=torch.long)
        return tuple(count / sum(self.num_samples) for count in sum(self.missing, none).tolist())


def _num_samples(batch: Batch) -> float:
    return float(len(batch))


def _schedule(settings: FitSettings, train_loader: Iterable[object]) -> Schedule:
    warmup = constant(settings.warmup_steps)
    if settings.scheduler == "plateau":
        return Plateau(
            settings.monitor,
            factor=settings.plateau_factor,
            patience=settings.plateau_patience,
            min_delta=settings.min_delta,
            warmup=warmup,
        )
    if settings.scheduler not in ("cosine", "onecycle"):
        return warmup
    if not isinstance(train_loader, Sized):
        raise ConfigError(
            f"the schedule {settings.scheduler!r} ends with the last step, and the loader has no length",
            do="give a loader with a length, or take the scheduler constant or plateau",
        )
    num_steps = settings.epochs * math.ceil(len(train_loader) / settings.gradient_accumulation_steps)
    return one_cycle(num_steps) if settings.scheduler == "onecycle" else cosine(settings.warmup_steps, num_steps)


def _optimizer(model: LINet, settings: FitSettings) -> Optimizer:
    if isinstance(settings.optimizer, Optimizer):
        return settings.optimizer
    if settings.optimizer not in _OPTIMIZERS:
        names = ", ".join(_OPTIMIZERS)
        raise ConfigError(f"optimizer is {settings.optimizer!r}", where="fit", do=f"give one of torch's, or {names}")
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {"name": "all", "params": [p for name, p in named if is_decayed(name, p)]},
        {"name": "all (no decay)", "params": [p for name, p in named if not is_decayed(name, p)], "weight_decay": 0.0},
    ]
    kind: Any = _OPTIMIZERS[settings.optimizer]
    more = {"momentum": 0.9} if kind is SGD else {}
    made: Optimizer = kind(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay, **more)
    return made
