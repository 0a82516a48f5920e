"""How much each stream matters: to the answers, and to what is added up inside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frostline.systems.linet.batches import read_batches
from frostline.systems.linet.layers import LIConv2d
from frostline.systems.linet.monitoring import integration_norms
from frostline.systems.linet.network import LINet
from frostline.systems.linet.scoring import Scores, evaluating, score


@dataclass(frozen=True, kw_only=True)
class PathwayImportance:
    """What a stream is worth.

    Attributes:
        stream: Its number.
        alone: Scores with this stream and no other.
        without: Scores with every stream but this one; None of a single stream.
        accuracy_drop: Accuracy of the whole network minus that without it; None of a single stream.
        added_shares: By stage: the share of what the convolutions add up that this stream brings, by root mean
            square over the samples that have it. The rest is the other streams' and the integrated pathway's own.
        weight_share: Its share of the L2 norm of all weights that integrate streams.
    """

    stream: int
    alone: Scores
    without: Scores | None
    accuracy_drop: float | None
    added_shares: dict[str, float]
    weight_share: float


def pathway_importance(
    model: LINet, loader: Sequence[object] | Iterable[object], *, max_samples: int | None = None
) -> tuple[PathwayImportance, ...]:
    """Measure every stream, by taking it away and by looking at what it adds.

    Args:
        model: The network.
        loader: Of batches; it is read several times.
        max_samples: Of each reading.
    """
    numbers = range(model.num_streams)
    whole = score(model, loader, max_samples=max_samples)
    added = _added_shares(model, loader, max_samples)
    weights = integration_norms(model)
    total = sum(weights.values()) or 1.0
    found = []
    for stream in numbers:
        others = [other for other in numbers if other != stream]
        without = score(model, loader, streams=others, max_samples=max_samples) if others else None
        found.append(
            PathwayImportance(
                stream=stream,
                alone=score(model, loader, streams=[stream], max_samples=max_samples),
                without=without,
                accuracy_drop=None if without is None else whole.accuracy - without.accuracy,
                added_shares={stage: shares[stream] for stage, shares in added.items()},
                weight_share=weights[stream] / total,
            )
        )
    return tuple(found)


def _added_shares(model: LINet, loader: Iterable[object], max_samples: int | None) -> dict[str, list[float]]:
    """By stage, each stream's share; a stream that no sample of a batch has does not count there."""
    stages: dict[str, nn.Module] = {
        name: child for name, child in model.named_children() if isinstance(child, nn.ModuleList)
    }
    sums = {name: torch.zeros(model.num_streams + 1, dtype=torch.float64) for name in stages}
    device, count = model.fc.weight.device, 0
    with _watched(stages, sums), evaluating(model):
        for batch in read_batches(loader, model.num_streams):
            if max_samples is not None and count >= max_samples:
                break
            count += len(batch)
            model(batch.to(device).streams, batch.availability)
    return {name: (values / values.sum().clamp(min=1e-300))[:-1].tolist() for name, values in sums.items()}


@contextmanager
def _watched(stages: dict[str, nn.Module], sums: dict[str, Tensor]) -> Iterator[None]:
    handles = []
    for name, stage in stages.items():
        into = sums[name]

        def note(conv: nn.Module, inputs: tuple[Any, ...], output: Any, into: Tensor = into) -> None:
            assert isinstance(conv, LIConv2d)
            own = F.conv2d(inputs[1], conv.integrated_weight, None, conv.stride, 0, 1, conv.groups)
            parts = [F.conv2d(s, w) for s, w in zip(output[0], conv.integration_from_streams, strict=True)]
            loud = [part.double().square().mean().sqrt() if len(part) else own.new_zeros(()) for part in (*parts, own)]
            into.add_(torch.stack([value.double() for value in loud]).cpu())

        handles += [conv.register_forward_hook(note) for conv in stage.modules() if isinstance(conv, LIConv2d)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
