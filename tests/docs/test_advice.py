import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import advice  # noqa: E402
import advice_graf  # noqa: E402
import advice_linet  # noqa: E402
import advice_semcom  # noqa: E402
from advice_verdict import (  # noqa: E402
    MEANING,
    Claim,
    Finding,
    median_interval,
    saving_verdict,
    speed_verdict,
    time_ratios,
)
from frostline.systems.semcom.config import SemcomSystemConfig  # noqa: E402
from frostline.systems.semcom.peak_table import Setting  # noqa: E402

QUICK = Setting(system=SemcomSystemConfig(model="nano", codec="linear"), batch_size=1, image_size=64, target_tokens=8)
VERDICTS = {
    "no_grad_over_frozen_tower": {"no effect"},
    "no_grad_over_everything": {"no effect", "false"},  # the codec's share of the bytes grows as the model shrinks
    "no_grad_behind_the_codec": {"harmful"},
    "no_grad_over_the_channel": {"harmful"},
    "detach_cuts_the_gradient": {"false"},
    "freezing_still_builds_the_graph": {"false"},
    "freezing_is_enough": {"true"},
    "no_grad_is_faster": set(MEANING),  # a busy machine may say anything
    "autocast_over_frozen_weights": {"harmful"},
    "transformers_checkpointing": {"harmful"},  # what it adds weighs less than 1 % in the released model
    "deleting_outputs": {"true"},
    "collecting_garbage": {"no effect"},
}


def test_every_claim_has_an_expected_verdict():
    assert [claim.test.__name__ for claim in advice_semcom.CLAIMS] == list(VERDICTS)


SLOW = {"autocast_over_frozen_weights", "deleting_outputs", "collecting_garbage"}


def claims():
    for claim in advice_semcom.CLAIMS:
        name = claim.test.__name__
        yield pytest.param(claim, id=name, marks=[pytest.mark.slow] if name in SLOW else [])


@pytest.mark.parametrize("claim", list(claims()))
def test_verdict(claim: Claim, monkeypatch):
    monkeypatch.setattr(advice_semcom, "_NUM_PAIRS", 12)
    found = claim.test(QUICK)
    assert found.verdict in VERDICTS[claim.test.__name__], found.measured
    assert found.measured and found.numbers


def test_transformers_own_checkpointing_saves_nothing_in_eval_mode_and_ours_does():
    numbers = advice_semcom.transformers_checkpointing(QUICK).numbers
    assert numbers["checkpoint_saved_bytes"] < numbers["saved_bytes"] <= numbers["enabled_saved_bytes"]


def test_a_penalty_hides_that_the_decompression_gets_no_gradient():
    numbers = advice_semcom.no_grad_behind_the_codec(QUICK).numbers
    assert numbers["codec_tensors"] == 4
    assert numbers["arrived_with_penalty"] == 2
    assert numbers["arrived_with_requires_grad"] == 0


def test_the_page_lists_exactly_the_registered_claims():
    lines = advice.PAGE.read_text(encoding="utf-8").splitlines()
    headings = [line.removeprefix("### ") for line in lines if line.startswith("### ")]
    claims = {"semcom": advice_semcom.CLAIMS, "linet": advice_linet.CLAIMS, "graf": advice_graf.CLAIMS}
    assert headings == [claim.claim for results in advice.read_results() for claim in claims[results.system]]


def test_published_verdicts_are_those_of_small_runs():
    (semcom,) = [results for results in advice.read_results() if results.system == "semcom"]
    for claim, found in zip(advice_semcom.CLAIMS, semcom.advice, strict=True):
        name = claim.test.__name__
        expected = {"no effect"} if name == "transformers_checkpointing" else VERDICTS[name]
        assert found.verdict in expected, found.claim


def test_the_page_is_what_the_results_say():
    assert advice.PAGE.read_text(encoding="utf-8") == advice.render(advice.read_results())


@pytest.mark.parametrize(
    ("before", "after", "promised", "verdict"),
    [
        (100, 60, 0.3, "true"),
        (100, 80, 0.3, "false"),
        (100, 99.5, 0.3, "no effect"),
        (100, 100.5, 0.3, "no effect"),
        (100, 101, 0.3, "harmful"),
    ],
)
def test_a_saving_is_judged_by_its_promise(before, after, promised, verdict):
    assert saving_verdict(before, after, promised=promised) == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.8, 0.9, "true"), (0.9, 1.1, "no effect"), (0.98, 0.995, "no effect"), (1.1, 1.2, "false")],
)
def test_speed_is_judged_by_its_interval(low, high, verdict):
    assert speed_verdict(low, high) == verdict


def test_the_median_interval_holds_the_median_and_not_the_outliers():
    median, low, high = median_interval([1.0 + i / 1000 for i in range(-30, 31)] + [50.0, 0.01])
    assert 0.98 < low < median < high < 1.02


def test_time_ratios_alternate_after_a_warm_up():
    order: list[str] = []
    ratios = time_ratios(lambda: order.append("plain"), lambda: order.append("advised"), 2)
    assert len(ratios) == 2
    assert order == ["plain", "advised", "advised", "plain", "plain", "advised"]


@pytest.fixture
def toy_bench(monkeypatch, tmp_path):
    toy = ModuleType("advice_toy")
    finding = Finding("false", "2 is not 3.", {"sum": 2.0})
    vars(toy).update(
        ABOUT="Sums.", SETTING=None, CLAIMS=(Claim("1 + 1 is 3", "a rumour", "Count.", lambda _: finding),)
    )
    monkeypatch.setitem(sys.modules, "advice_toy", toy)
    monkeypatch.setattr(advice, "SYSTEMS", {"toy": "advice_toy"})
    monkeypatch.setattr(advice, "PAGE", tmp_path / "advice.md")
    monkeypatch.setattr(advice, "RESULTS", tmp_path)
    return tmp_path


def test_json_prints_a_list_and_writes_nothing(toy_bench, capsys):
    assert advice.main(["toy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {
            "claim": "1 + 1 is 3",
            "source": "a rumour",
            "verdict": "false",
            "measured": "2 is not 3.",
            "instead": "Count.",
            "numbers": {"sum": 2.0},
        }
    ]
    assert list(toy_bench.iterdir()) == []


def test_a_run_writes_results_and_page(toy_bench):
    assert advice.main([]) == 0
    page = (toy_bench / "advice.md").read_text()
    assert "| 1 + 1 is 3 | false |" in page
    assert "### 1 + 1 is 3\n\n**False.** 2 is not 3.\n\n*Do:* Count.\n\n*Source:* a rumour\n" in page
    assert (toy_bench / "advice-toy.json").exists()
