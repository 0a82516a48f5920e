"""When training, or a stream, or a learning rate, has had enough."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from frostline.systems.linet.network import LINet
from frostline.systems.linet.scoring import Scores
from frostline.systems.linet.streams import freeze_stream_, load_stream_, stream_state
from frostline.training import Schedule

Monitor = Literal["val_loss", "val_accuracy"]


class Best:
    """The best score so far, and how many came after it.

    Args:
        monitor: A loss is better when it is lower, an accuracy when it is higher.
        min_delta: By how much.

    Attributes:
        score: The best; None before the first.
        epoch: When it was.
        num_worse: Scores after it.
    """

    def __init__(self, monitor: Monitor, min_delta: float) -> None:
        self._sign, self._min_delta = (-1 if monitor == "val_loss" else 1), min_delta
        self.score: float | None = None
        self.epoch = -1
        self.num_worse = 0

    def add(self, score: float, epoch: int) -> bool:
        """Take a score; whether it is the best."""
        better = self.score is None or self._sign * (score - self.score) > self._min_delta
        if better:
            self.score, self.epoch, self.num_worse = score, epoch, 0
        else:
            self.num_worse += 1
        return better


class BestWeights:
    """The weights of the best epoch."""

    def __init__(self, monitor: Monitor, min_delta: float = 0.0) -> None:
        self.best = Best(monitor, min_delta)
        self._state: dict[str, Tensor] | None = None

    def add(self, model: LINet, score: float, epoch: int) -> bool:
        """Take an epoch; whether it is the best, and its weights were copied to the host."""
        better = self.best.add(score, epoch)
        if better:
            self._state = {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}
        return better

    def restore_(self, model: LINet, frozen: Mapping[int, Mapping[str, Tensor]]) -> bool:
        """Load the best epoch's weights, but for frozen streams, which keep their own best."""
        if self._state is None:
            return False
        model.load_state_dict(self._state)
        for stream, state in frozen.items():
            load_stream_(model, stream, state)
        return True


class StreamStopping:
    """Freezes each stream that is no longer getting better by itself, at the weights with which it was best.

    Args:
        model: Its streams.
        monitor: Of the stream alone.
        patience: Epochs without a better score that are put up with, one number a stream.
        min_delta: By how much a score must be better.

    Attributes:
        frozen_at: The epoch after which each frozen stream was frozen.
        restored: The epoch whose weights it was given.
        states: Those weights and statistics.
    """

    def __init__(self, model: LINet, monitor: Monitor, patience: tuple[int, ...], min_delta: float) -> None:
        self._model, self._patience = model, patience
        self._bests = [Best(monitor, min_delta) for _ in patience]
        self._saved: list[dict[str, Tensor]] = [{} for _ in patience]
        self.frozen_at: dict[int, int] = {}
        self.restored: dict[int, int] = {}
        self.states: dict[int, dict[str, Tensor]] = {}

    def add(self, scores: Mapping[int, float], epoch: int) -> list[int]:
        """Take an epoch's scores by stream; the streams that it froze."""
        frozen = []
        for stream, value in scores.items():
            if stream in self.frozen_at:
                continue
            best = self._bests[stream]
            if best.add(value, epoch):
                self._saved[stream] = {name: t.cpu() for name, t in stream_state(self._model, stream).items()}
            elif best.num_worse > self._patience[stream]:
                self._freeze_(stream, epoch)
                frozen.append(stream)
        return frozen

    @property
    def all_frozen(self) -> bool:
        """Whether no stream trains any more."""
        return len(self.frozen_at) == len(self._patience)

    def _freeze_(self, stream: int, epoch: int) -> None:
        load_stream_(self._model, stream, self._saved[stream])
        freeze_stream_(self._model, stream)
        self.frozen_at[stream], self.restored[stream] = epoch, self._bests[stream].epoch
        self.states[stream] = self._saved[stream]


class Plateau:
    """A schedule that lowers the learning rate when the monitored score has stopped to improve.

    Args:
        monitor: The score.
        factor: Of each reduction.
        patience: Epochs without a better score that are put up with.
        min_delta: By how much a score must be better.
        warmup: The schedule it comes on top of.
    """

    def __init__(self, monitor: Monitor, *, factor: float, patience: int, min_delta: float, warmup: Schedule) -> None:
        self._best, self._factor, self._patience, self._warmup = Best(monitor, min_delta), factor, patience, warmup
        self._scale = 1.0

    def __call__(self, step: int) -> float:
        """The factor on the initial learning rate."""
        return self._warmup(step) * self._scale

    def add(self, score: float, epoch: int) -> None:
        """Take an epoch's score."""
        if not self._best.add(score, epoch) and self._best.num_worse > self._patience:
            self._scale *= self._factor
            self._best.num_worse = 0


def monitored(scores: Scores, monitor: Monitor) -> float:
    """The score that is monitored."""
    return scores.loss if monitor == "val_loss" else scores.accuracy
