"""Every combination of streams, every missing rate, calibration."""

import math
from itertools import product

import pytest
import torch

from frostline.errors import ConfigError, DataError
from frostline.systems.linet.evaluation import (
    ACCURACY,
    RATES,
    Outcomes,
    accuracy,
    all_subsets,
    calibration_error,
    evaluation_report,
    independent_weights,
    run_combinations,
)
from linet_parts import missing, samples, small_net


def batches(streams=(3, 1), sizes=(5, 3)):
    drawn = [samples(size, streams=streams, seed=number) for number, size in enumerate(sizes)]
    return [(*images, labels) for images, labels in drawn]


def test_every_combination_is_what_the_network_alone_says():
    model, loader = small_net(streams=(3, 1, 2)), batches((3, 1, 2))
    outcomes = run_combinations(model, loader)
    assert list(outcomes) == [(0, 1, 2), (0, 1), (0, 2), (1, 2), (0,), (1,), (2,)]
    for subset in outcomes:
        assert accuracy(outcomes, {subset: 1.0}) == model.evaluate(loader, streams=subset).accuracy
        others = set(range(3)) - set(subset)
        probabilities = model.predict_proba(loader, blanked_streams=others)
        torch.testing.assert_close(outcomes[subset].confidence, probabilities.max(1).values)
    assert model.training


def test_genuinely_missing_streams_count_only_where_they_can():
    model = small_net()
    images, labels = samples(4)
    images[1][0] = math.nan
    outcomes = run_combinations(model, [(*images, missing("10 11 01 11"), labels)])
    assert outcomes[(0, 1)].counted.all()
    assert outcomes[(0,)].counted.tolist() == [True, True, False, True]
    assert outcomes[(1,)].counted.tolist() == [False, True, True, True]
    assert all(torch.isfinite(part.confidence).all() for part in outcomes.values())


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_independent_losses_have_their_probabilities(rate):
    weights = independent_weights(3, rate)
    expected = dict.fromkeys(weights, 0.0)
    for lost in product([False, True], repeat=3):
        chance = math.prod(rate if gone else 1 - rate for gone in lost)
        kept = tuple(stream for stream in range(3) if not lost[stream])
        for subset in [kept] if kept else [(0,), (1,), (2,)]:
            expected[subset] += chance / (1 if kept else 3)
    assert weights == pytest.approx(expected) and sum(weights.values()) == pytest.approx(1)


def outcome(right, confidence):
    return Outcomes(torch.tensor(right), torch.tensor(confidence), torch.ones(len(right), dtype=torch.bool))


def test_calibration_error_by_hand():
    sure_and_right = outcome([True] * 4, [1.0] * 4)
    half = outcome([True, False, True, False], [0.9] * 4)
    outcomes = {(0, 1): sure_and_right, (0,): half}
    assert calibration_error(outcomes, {(0, 1): 1.0}) == pytest.approx(0)
    assert calibration_error(outcomes, {(0,): 1.0}) == pytest.approx(0.4)
    assert calibration_error(outcomes, {(0, 1): 0.75, (0,): 0.25}) == pytest.approx(0.1)
    assert accuracy(outcomes, {(0, 1): 0.75, (0,): 0.25}) == pytest.approx(0.875)


def test_a_report_holds_the_table_the_curves_and_the_summary():
    model, loader = small_net(), batches()
    report = evaluation_report(model, loader, names=["colour", "depth"], title="a test")
    by_name = {(curve.y_name, curve.name): curve for curve in report.curves}
    assert len(report.curves) == 6 and all(curve.x == RATES for curve in report.curves)
    whole, colour, depth = (model.evaluate(loader, streams=s).accuracy for s in ([0, 1], [0], [1]))
    assert by_name[ACCURACY, "only colour"].y == pytest.approx([(1 - r) * whole + r * colour for r in RATES])
    losing = by_name[ACCURACY, "each stream lost by itself"].y
    assert losing[0] == pytest.approx(whole) and losing[-1] == pytest.approx((colour + depth) / 2)
    facts = report.facts
    assert facts["accuracy, colour + depth"] == whole and facts["accuracy, only depth"] == depth
    assert facts["accuracy, mean of combinations"] == pytest.approx((whole + colour + depth) / 3)
    worst = [name for name in facts if name.startswith("accuracy, worst combination")]
    assert facts[worst[0]] == min(whole, colour, depth)
    assert 0 <= facts["calibration error, colour + depth"] <= 1


def test_what_cannot_be_evaluated():
    with pytest.raises(DataError, match="no sample to evaluate on"):
        run_combinations(small_net(), [])
    with pytest.raises(ConfigError, match="7 streams have 127 combinations"):
        run_combinations(small_net(streams=(1,) * 7), [])
    assert len(all_subsets(4)) == 15
