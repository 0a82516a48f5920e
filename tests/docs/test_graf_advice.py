"""graf's published claims at a small size, and what is written of them."""

import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import advice  # noqa: E402
import advice_graf  # noqa: E402
from advice_graf_rig import Way, made_of_nothing_bytes, peak_bytes  # noqa: E402
from advice_verdict import Claim  # noqa: E402
from frostline.systems.graf.peak_table import Setting  # noqa: E402

QUICK = Setting(batch_size=4, image_size=16, num_samples=32, depth=4, width=64, channels=8, superres_width=16)
VERDICTS = {
    "default_tensor_type": "no effect",
    "loader_workers": "no effect",
    "set_to_none": "no effect",
    "losses_made_once": "no effect",
    "non_blocking_copies": "no effect",
    "deleted_names": "no effect",
    "emptied_cache": "no effect",
    "no_grad_for_fakes": "true",
    "cut_superres": "harmful",
    "evaluation_on_cpu": "no effect",
    "mixed_precision": "true",
    "all_together": "harmful",
    "slower_by_cleaning": "no effect",
    "larger_batch": "true",
}


def test_every_claim_has_an_expected_verdict():
    assert [claim.test.__name__ for claim in advice_graf.CLAIMS] == list(VERDICTS)


@pytest.mark.parametrize("claim", [pytest.param(c, id=c.test.__name__) for c in advice_graf.CLAIMS])
def test_verdict_of_a_graf_claim(claim: Claim, monkeypatch):
    monkeypatch.setattr(advice_graf, "_NUM_PAIRS", 4)
    found = claim.test(QUICK)
    if claim.test is not advice_graf.slower_by_cleaning:  # a time, which a few tiny steps do not tell
        assert found.verdict == VERDICTS[claim.test.__name__], found.measured
    assert found.measured and found.numbers


def test_the_cut_costs_every_gradient_of_super_resolution_and_the_rest_none():
    assert advice_graf.lost_parameters(QUICK, Way()) == (0, 9)
    assert advice_graf.lost_parameters(QUICK, Way(cut=True)) == (9, 9)


def test_the_published_log_fails_after_its_del():
    assert advice_graf.deleted_names(QUICK).numbers["failures"] == 1.0


def test_what_is_made_of_nothing_is_counted():
    assert 0 < made_of_nothing_bytes(QUICK) < peak_bytes(QUICK, Way())


@pytest.mark.skipif(not (advice.RESULTS / "advice-graf.json").exists(), reason="bench/advice.py graf has not been run")
def test_published_results_are_those_of_small_runs():
    (graf,) = [results for results in advice.read_results() if results.system == "graf"]
    assert graf.about == advice_graf.ABOUT
    assert [one.claim for one in graf.advice] == [claim.claim for claim in advice_graf.CLAIMS]
    assert [one.verdict for one in graf.advice] == list(VERDICTS.values())
