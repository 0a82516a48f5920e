"""How good a network is, with all its streams or with some of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from frostline.errors import ConfigError, DataError
from frostline.systems.linet.batches import Batch, read_batches
from frostline.systems.linet.network import LINet
from frostline.training import Precision, autocast


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Means over samples.

    Attributes:
        loss: Cross-entropy in nats.
        accuracy: Share of the samples classified right.
        num_samples: Those that have one of the streams asked for.
    """

    loss: float
    accuracy: float
    num_samples: int


def score(
    model: LINet,
    loader: Iterable[object],
    *,
    streams: Sequence[int] | None = None,
    max_samples: int | None = None,
    precision: Precision = "32-true",
) -> Scores:
    """Loss and accuracy in eval mode; the network is afterwards in the mode it was in.

    Args:
        model: The network.
        loader: Of batches; see `read_batch`.
        streams: The only ones to use; all that are there if None.
        max_samples: Stop with the batch that reaches so many.
        precision: Autocast type.

    Raises:
        ConfigError: There is no such stream.
        DataError: No sample has one of the streams.
    """
    loss, right, count = torch.zeros((), dtype=torch.float64), 0, 0
    for logits, batch in classify(model, loader, streams=streams, max_samples=max_samples, precision=precision):
        labels = batch.labels
        loss += F.cross_entropy(logits.float(), labels, reduction="sum").double().cpu()
        right += int((logits.argmax(1) == labels).sum())
        count += len(labels)
    if not count:
        raise DataError("there is no sample to evaluate on", do="look at the loader's length, and at availabilities")
    return Scores(loss=float(loss) / count, accuracy=right / count, num_samples=count)


def classify(
    model: LINet,
    loader: Iterable[object],
    *,
    streams: Sequence[int] | None = None,
    max_samples: int | None = None,
    precision: Precision = "32-true",
    labelled: bool = True,
) -> Iterator[tuple[Tensor, Batch]]:
    """Logits ``(B, K)`` of each batch, and the batch on the network's device; see `score`."""
    if streams is not None and not (streams and set(streams) <= set(range(model.num_streams))):
        raise ConfigError(
            f"streams {list(streams)} are not of a network with {model.num_streams}", do="name some of them"
        )
    device, count = model.fc.weight.device, 0
    for batch in read_batches(loader, model.num_streams, labelled=labelled):
        if max_samples is not None and count >= max_samples:
            return
        count += len(batch)
        used = batch if streams is None else batch.restricted(streams)
        if len(used) == 0:
            continue
        used = used.to(device)
        with evaluating(model), autocast(precision, device):
            logits = model(used.streams, used.availability)
        yield logits, used


@contextmanager
def evaluating(model: LINet) -> Iterator[None]:
    """Eval mode without gradients; afterwards the mode is what it was."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def predict_probabilities(
    model: LINet,
    loader: Iterable[object],
    *,
    streams: Sequence[int] | None = None,
    precision: Precision = "32-true",
) -> Tensor:
    """Class probabilities ``(S, K)`` of all samples, float32 on the CPU; labels may be left out of the batches.

    With `streams`, samples that have none of them are left out.
    """
    found = [
        logits.float().softmax(1).cpu()
        for logits, _ in classify(model, loader, streams=streams, precision=precision, labelled=False)
    ]
    return torch.cat(found) if found else torch.zeros(0, model.fc.out_features)
