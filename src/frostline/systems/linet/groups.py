"""Learning rates and weight decays of a stream's own, with normalisations left out of the decay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from frostline.errors import ConfigError
from frostline.systems.linet.network import LINet
from frostline.systems.linet.streams import integrates, stream_of


def parameter_groups(
    model: LINet,
    *,
    stream_lrs: float | Sequence[float] = 1e-3,
    stream_weight_decays: float | Sequence[float] = 1e-2,
    shared_lr: float = 1e-3,
    shared_weight_decay: float = 1e-2,
    integration_weight_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups for any optimizer of torch's: each stream's, and what all share.

    Scales, shifts and biases follow their pathway's learning rate and are never decayed; they stand in groups of
    their own, named with ``(no decay)``.

    Args:
        model: The network; parameters that do not train are left out.
        stream_lrs: One for all streams, or one a stream.
        stream_weight_decays: Likewise.
        shared_lr: Of the integrated pathway, of the weights that integrate streams, and of the classifier.
        shared_weight_decay: Of the same.
        integration_weight_decay: Of the weights that integrate streams, if another one.

    Raises:
        ConfigError: Another number of values than streams.
    """
    lrs = _one_each(stream_lrs, model.num_streams, "stream_lrs")
    decays = _one_each(stream_weight_decays, model.num_streams, "stream_weight_decays")
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        stream = stream_of(name)
        if stream is not None:
            title, lr, decay = f"stream {stream}", lrs[stream], decays[stream]
        elif integrates(name) is not None and integration_weight_decay is not None:
            title, lr, decay = "integration", shared_lr, integration_weight_decay
        else:
            title, lr, decay = "shared", shared_lr, shared_weight_decay
        if not is_decayed(name, parameter):
            title, decay = f"{title} (no decay)", 0.0
        group = groups.setdefault(title, {"name": title, "params": [], "lr": lr, "weight_decay": decay})
        group["params"].append(parameter)
    return [groups[title] for title in sorted(groups)]


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay makes sense: not for scales, shifts, biases and what stands for a missing stream."""
    return parameter.dim() > 1 and name != "missing_embeddings"


def _one_each(values: float | Sequence[float], num_streams: int, name: str) -> list[float]:
    listed = list(values) if isinstance(values, Sequence) else [values] * num_streams
    if len(listed) != num_streams:
        raise ConfigError(
            f"{name} has {len(listed)} values, the network {num_streams} streams",
            do="give one a stream, or one for all",
        )
    return listed
