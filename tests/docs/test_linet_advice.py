"""linet's published claims at a small size, and what is written of them."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import advice  # noqa: E402
import advice_linet  # noqa: E402
from advice_verdict import Claim  # noqa: E402
from frostline.systems.linet.peak_table import Setting  # noqa: E402

QUICK = Setting(batch_size=32, image_size=64, width_multiplier=0.125)
VERDICTS = {
    "masks_in_place": "false",
    "writing_by_index_copy": "harmful",
    "whole_optimisation": "harmful",
    "near_optimal": "false",
    "checkpointing_each_block": "false",
    "accumulation": "false",
    "lower_rate": "harmful",
    "under_ddp": "false",
}
SLOW = {"masks_in_place", "whole_optimisation", "near_optimal", "checkpointing_each_block", "lower_rate"}


def claims():
    for claim in advice_linet.CLAIMS:
        name = claim.test.__name__
        yield pytest.param(claim, id=name, marks=[pytest.mark.slow] if name in SLOW else [])


@pytest.mark.parametrize("claim", list(claims()))
def test_verdict_of_a_linet_claim(claim: Claim):
    found = claim.test(replace(QUICK, batch_size=8) if claim.test.__name__ == "accumulation" else QUICK)
    assert found.verdict == VERDICTS[claim.test.__name__], found.measured
    assert found.measured and found.numbers


@pytest.mark.parametrize("training", [True, False])
def test_halves_are_the_whole_batch_only_where_batch_norm_has_no_batch(training):
    proof, worst = advice_linet._accumulated(replace(QUICK, batch_size=8, image_size=32), training=training)
    assert (proof == "BOUNDED" and worst > 1e-2) if training else (proof in ("EXACT", "ROUNDING") and worst < 1e-10)


@pytest.mark.skipif(
    not (advice.RESULTS / "advice-linet.json").exists(), reason="bench/advice.py linet has not been run"
)
def test_published_results_are_those_of_small_runs():
    (linet,) = [results for results in advice.read_results() if results.system == "linet"]
    assert linet.about == advice_linet.ABOUT
    assert [one.claim for one in linet.advice] == [claim.claim for claim in advice_linet.CLAIMS]
    assert [one.verdict for one in linet.advice] == list(VERDICTS.values())
    (accumulated,) = [one for one in linet.advice if "accumulation" in one.claim]
    assert "EXACT" not in accumulated.measured and "(BOUNDED)" in accumulated.measured
