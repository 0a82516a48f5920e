"""What is looked at while a network trains: each stream alone, its gradient, its rate, its weight in the whole."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from frostline.systems.linet.history import StreamRecord
from frostline.systems.linet.network import LINet
from frostline.systems.linet.scoring import Scores, score
from frostline.systems.linet.streams import frozen_streams, integrates, stream_of
from frostline.training import Precision


@dataclass(frozen=True, kw_only=True)
class StreamScores:
    """By stream: it alone on validation and on training samples, and the network without it on the former."""

    alone: dict[int, Scores] = field(default_factory=dict)
    alone_train: dict[int, Scores] = field(default_factory=dict)
    without: dict[int, Scores] = field(default_factory=dict)


def score_streams(
    model: LINet,
    val_loader: Iterable[object],
    train_loader: Iterable[object] | None = None,
    *,
    max_samples: int | None = None,
    precision: Precision = "32-true",
) -> StreamScores:
    """Score each stream alone; with a training loader there too, and the network without it.

    Of two streams, "without one" is "the other alone", and is not run twice.
    """

    def scored(loader: Iterable[object], streams: Sequence[int]) -> Scores:
        return score(model, loader, streams=streams, max_samples=max_samples, precision=precision)

    numbers = range(model.num_streams)
    alone = {stream: scored(val_loader, (stream,)) for stream in numbers}
    if train_loader is None or model.num_streams == 1:
        return StreamScores(alone=alone)
    if model.num_streams == 2:
        without = {0: alone[1], 1: alone[0]}
    else:
        without = {stream: scored(val_loader, [other for other in numbers if other != stream]) for stream in numbers}
    alone_train = {stream: scored(train_loader, (stream,)) for stream in numbers}
    return StreamScores(alone=alone, alone_train=alone_train, without=without)


class GradientNorms:
    """The L2 norm of each stream's gradient as the optimizer sees it, clipped and unscaled.

    Args:
        model: The network.
        every: Steps between two looks.
    """

    def __init__(self, model: LINet, every: int) -> None:
        self._model, self._every, self._step = model, every, 0
        self._norms: list[list[float]] = []

    def watch(self, optimizer: Optimizer) -> RemovableHandle:
        """Look from now on; the handle's `remove` ends it."""
        handle: RemovableHandle = optimizer.register_step_pre_hook(self._look)
        return handle

    def take(self) -> dict[int, float]:
        """Means since the last call, by stream; empty if nothing was looked at."""
        norms, self._norms = self._norms, []
        return {stream: sum(values) / len(values) for stream, values in enumerate(zip(*norms, strict=True))}

    def _look(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._step += 1
        if (self._step - 1) % self._every:
            return
        squares = [torch.zeros((), device=self._model.fc.weight.device) for _ in range(self._model.num_streams)]
        for name, parameter in self._model.named_parameters():
            stream = stream_of(name)
            if stream is not None and parameter.grad is not None:
                squares[stream] = squares[stream] + parameter.grad.detach().float().square().sum()
        self._norms.append(torch.stack(squares).sqrt().tolist())


def stream_records(
    model: LINet,
    optimizer: Optimizer,
    scores: StreamScores,
    gradient_norms: dict[int, float],
    integration_norms: dict[int, float],
) -> tuple[StreamRecord, ...]:
    """All that is known of each stream."""
    frozen, rates = frozen_streams(model), _rates_of_streams(model, optimizer)
    alone, alone_train, without = scores.alone, scores.alone_train, scores.without
    return tuple(
        StreamRecord(
            stream=stream,
            frozen=stream in frozen,
            learning_rate=rates.get(stream),
            alone_train_accuracy=alone_train[stream].accuracy if stream in alone_train else None,
            alone_val_loss=alone[stream].loss if stream in alone else None,
            alone_val_accuracy=alone[stream].accuracy if stream in alone else None,
            without_val_accuracy=without[stream].accuracy if stream in without else None,
            gradient_norm=gradient_norms.get(stream),
            integration_norm=integration_norms.get(stream),
        )
        for stream in range(model.num_streams)
    )


def integration_norms(model: LINet) -> dict[int, float]:
    """The L2 norm of all weights that integrate each stream."""
    squares = [0.0] * model.num_streams
    for name, parameter in model.named_parameters():
        stream = integrates(name)
        if stream is not None:
            squares[stream] += float(parameter.detach().float().square().sum())
    return {stream: math.sqrt(square) for stream, square in enumerate(squares)}


def save_integration(model: LINet, directory: Path, epoch: int) -> Path:
    """Write the weights that integrate streams to ``epoch-0001.safetensors`` and so on."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if integrates(name) is not None
    }
    path = directory / f"epoch-{epoch:04d}.safetensors"
    save_file(weights, path)
    return path


def learning_rates(optimizer: Optimizer) -> dict[str, float]:
    """The present rate of each group, by its name or number."""
    return {
        str(group.get("name", f"group {number}")): float(group["lr"])
        for number, group in enumerate(optimizer.param_groups)
    }


def _rates_of_streams(model: LINet, optimizer: Optimizer) -> dict[int, float]:
    """The rate of each stream that has groups of its own."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {}
    for group in optimizer.param_groups:
        owners = {stream_of(names.get(id(parameter), "")) for parameter in group["params"]}
        owner = owners.pop() if len(owners) == 1 else None
        if owner is not None:
            rates[owner] = float(group["lr"])
    return rates
