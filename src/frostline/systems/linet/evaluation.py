"""How good a network is when streams are missing: every combination, every rate, and how well it knows its doubt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from statistics import fmean

import torch
from torch import Tensor

from frostline.errors import ConfigError, DataError
from frostline.records import Curve, EvaluationReport
from frostline.systems.linet.batches import Batch, read_batches
from frostline.systems.linet.network import LINet
from frostline.systems.linet.scoring import evaluating

RATES = tuple(number / 10 for number in range(11))
ACCURACY, CALIBRATION = "accuracy", "expected calibration error"
_NUM_BINS = 15
_MAX_STREAMS = 6

Subset = tuple[int, ...]


@dataclass(frozen=True)
class Outcomes:
    """What a network said of S samples with one combination of streams.

    Attributes:
        right: Whether it was right, ``(S,)``.
        confidence: Probability of the class it chose, ``(S,)``.
        counted: Whether the sample has one of the streams, ``(S,)``.
    """

    right: Tensor
    confidence: Tensor
    counted: Tensor


def run_combinations(model: LINet, loader: Iterable[object]) -> dict[Subset, Outcomes]:
    """Every sample with every one of the ``2^N - 1`` combinations, in eval mode.

    In eval mode a sample's answer depends on its own streams alone, so what follows for mixtures of combinations is
    exact, not sampled.

    Args:
        model: The network.
        loader: Of batches; see `read_batch`. It is read once.

    Raises:
        ConfigError: There are more than 6 streams.
        DataError: There is no sample.
    """
    if model.num_streams > _MAX_STREAMS:
        raise ConfigError(
            f"{model.num_streams} streams have {2**model.num_streams - 1} combinations",
            do="evaluate those of interest with model.evaluate(loader, streams=...)",
        )
    subsets = all_subsets(model.num_streams)
    found: dict[Subset, list[Outcomes]] = {subset: [] for subset in subsets}
    for batch in read_batches(loader, model.num_streams):
        for subset in subsets:
            found[subset].append(_outcomes(model, batch, subset))
    if not found[subsets[0]]:
        raise DataError("there is no sample to evaluate on")
    return {
        subset: Outcomes(*(torch.cat([getattr(part, name) for part in parts]) for name in _FIELDS))
        for subset, parts in found.items()
    }


_FIELDS = ("right", "confidence", "counted")


def all_subsets(num_streams: int) -> tuple[Subset, ...]:
    """The ``2^N - 1`` combinations, the largest first."""
    return tuple(subset for size in range(num_streams, 0, -1) for subset in combinations(range(num_streams), size))


def accuracy(outcomes: dict[Subset, Outcomes], weights: dict[Subset, float]) -> float:
    """Share of right answers of a mixture of combinations."""
    right = sum(weight * float((outcomes[s].right & outcomes[s].counted).sum()) for s, weight in weights.items())
    count = sum(weight * float(outcomes[s].counted.sum()) for s, weight in weights.items())
    return right / count if count else float("nan")


def calibration_error(outcomes: dict[Subset, Outcomes], weights: dict[Subset, float]) -> float:
    """Mean distance between confidence and accuracy over 15 equal bins of confidence, of a mixture.

    Source: Guo et al., On Calibration of Modern Neural Networks (2017), equation 3.
    """
    sums = torch.zeros(2, _NUM_BINS, dtype=torch.float64)
    count = 0.0
    for subset, weight in weights.items():
        kept = outcomes[subset].counted
        confidence = outcomes[subset].confidence[kept].double()
        bins = (confidence * _NUM_BINS).long().clamp(max=_NUM_BINS - 1)
        values = torch.stack([outcomes[subset].right[kept].double(), confidence])
        sums.index_add_(1, bins, weight * values)
        count += weight * len(confidence)
    return float((sums[0] - sums[1]).abs().sum()) / count if count else float("nan")


def independent_weights(num_streams: int, rate: float) -> dict[Subset, float]:
    """How often each combination is left if each stream is lost with a probability; one is always kept."""
    weights = {
        subset: (1 - rate) ** len(subset) * rate ** (num_streams - len(subset)) for subset in all_subsets(num_streams)
    }
    for stream in range(num_streams):
        weights[(stream,)] += rate**num_streams / num_streams
    return weights


def evaluation_report(
    model: LINet,
    loader: Iterable[object],
    *,
    names: Sequence[str] | None = None,
    title: str = "LINet",
    facts: dict[str, float] | None = None,
) -> EvaluationReport:
    """Accuracy and calibration over missing rates, and of every combination.

    A curve named for a combination has it for a share of the samples, and all streams for the others: at 0 is the
    whole network, at 1 the combination alone.

    Args:
        model: The network.
        loader: Of batches; see `read_batch`.
        names: Of the streams.
        title: Of the report.
        facts: Further numbers.
    """
    outcomes = run_combinations(model, loader)
    num_streams = model.num_streams
    names = list(names or (f"stream {stream}" for stream in range(num_streams)))
    subsets = all_subsets(num_streams)
    whole = subsets[0]
    mixtures = {"each stream lost by itself": [independent_weights(num_streams, rate) for rate in RATES]}
    notes = {"each stream lost by itself": "exact expectation over samples and losses; one stream always stays"}
    for subset in subsets[1:]:
        title_of = _title(subset, names)
        mixtures[title_of] = [{whole: 1 - rate, subset: rate} for rate in RATES]
        notes[title_of] = "for this share of the samples; all streams for the others"
    curves = tuple(
        Curve(name=name, y_name=y_name, x=RATES, y=tuple(score(outcomes, w) for w in weights), note=notes[name])
        for y_name, score in ((ACCURACY, accuracy), (CALIBRATION, calibration_error))
        for name, weights in mixtures.items()
    )
    return EvaluationReport(
        system="linet",
        title=title,
        x_name="missing rate",
        curves=curves,
        facts={**combination_facts(outcomes, names), **(facts or {})},
    )


def combination_facts(outcomes: dict[Subset, Outcomes], names: Sequence[str]) -> dict[str, float]:
    """Accuracy and calibration of every combination; mean and worst of them; how much stays when streams are lost."""
    scores = {subset: accuracy(outcomes, {subset: 1.0}) for subset in outcomes}
    finite = {subset: value for subset, value in scores.items() if value == value}
    worst = min(finite, key=lambda subset: finite[subset])
    num_streams = max(map(len, outcomes))
    losing = [accuracy(outcomes, independent_weights(num_streams, rate)) for rate in RATES]
    area = sum((before + after) / 2 for before, after in pairwise(losing)) / (len(RATES) - 1)
    return {
        **{f"accuracy, {_title(subset, names)}": value for subset, value in scores.items()},
        "accuracy, mean of combinations": fmean(finite.values()),
        f"accuracy, worst combination ({_title(worst, names)})": finite[worst],
        "accuracy, mean over missing rates": area,
        **{
            f"calibration error, {_title(subset, names)}": calibration_error(outcomes, {subset: 1.0})
            for subset in outcomes
        },
    }


def _outcomes(model: LINet, batch: Batch, subset: Subset) -> Outcomes:
    counted = torch.ones(len(batch), dtype=torch.bool)
    if batch.availability is not None:
        counted = batch.availability[:, list(subset)].any(1)
    right, confidence = torch.zeros(len(batch), dtype=torch.bool), torch.zeros(len(batch))
    if bool(counted.any()):
        used = batch.restricted(subset).to(model.fc.weight.device)
        with evaluating(model):
            best = model(used.streams, used.availability).float().softmax(1).max(1)
        right[counted], confidence[counted] = (best.indices == used.labels).cpu(), best.values.cpu()
    return Outcomes(right, confidence, counted)


def _title(subset: Subset, names: Sequence[str]) -> str:
    chosen = " + ".join(names[stream] for stream in subset)
    return chosen if len(subset) == len(names) else f"only {chosen}"
