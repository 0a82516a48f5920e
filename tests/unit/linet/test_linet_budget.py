"""The cheapest treatment that fits."""

import dataclasses
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from frostline.memory import estimate
from frostline.planner.running import Runner
from frostline.systems.linet import budget as budget_module
from frostline.systems.linet.budget import choose_treatment, treatments
from frostline.systems.linet.config import LinetConfig, LinetDataConfig, LinetSystemConfig, LinetTrainingConfig
from frostline.systems.linet.verbs import blueprint

CONFIG = LinetConfig(
    data=LinetDataConfig(image_size=64),
    training=LinetTrainingConfig(batch_size=16),
    system=LinetSystemConfig(width_multiplier=0.25, recompute="none", stem_slices=0),
)


def predicted(build_model, build_step, treatment):
    def build():
        model = build_model()
        model.treatment = treatment
        return model

    return estimate(build, build_step)


def test_lower_rungs_of_the_ladder_need_less():
    build_model, build_step = blueprint(CONFIG)
    reports = [predicted(build_model, build_step, treatment) for treatment in treatments(build_model())[::2]]
    needs = [report.peak_bytes - report.resident_bytes for report in reports]
    assert needs == sorted(needs, reverse=True) and needs[-1] < 0.6 * needs[0]


@pytest.fixture
def prices(monkeypatch):
    """The peak of each rung, instead of two seconds of tracing; and which were asked for."""
    build_model, build_step = blueprint(CONFIG)
    ladder, asked = treatments(build_model()), []

    class PricedRunner(Runner):
        @contextmanager
        def opened(self):
            yield self

        def run(self, treatments=()):
            step = ladder.index(self._workload.model.treatment)
            asked.append(step)
            return SimpleNamespace(peak_bytes=1000 - 100 * step, live=[50], work=100 + step, peak_at="backward")

    monkeypatch.setattr(budget_module, "Runner", PricedRunner)
    return build_model, build_step, ladder, asked


@pytest.mark.parametrize(("limit", "step"), [(1000, 0), (999, 1), (900, 1), (850, 2), (700, 3), (600, 4), (500, 5)])
def test_the_first_rung_that_fits_is_taken(prices, limit, step):
    build_model, build_step, ladder, asked = prices
    choice = choose_treatment(build_model, build_step, f"{limit}B")
    assert (choice.treatment, choice.peak_bytes, choice.plain_peak_bytes) == (ladder[step], 1000 - 100 * step, 1000)
    assert choice.fits and len(asked) == len(set(asked)) <= 4


def test_the_smallest_and_what_does_not_fit(prices):
    build_model, build_step, ladder, _ = prices
    smallest = choose_treatment(build_model, build_step, "smallest")
    too_small = choose_treatment(build_model, build_step, "499B")
    assert smallest.treatment == too_small.treatment == ladder[-1]
    assert smallest.fits and not too_small.fits
    assert (
        str(too_small)
        == "recompute blocks, stem in 4 slices: at most 500 B with all streams, predicted; 1000 B without"
    )


def test_a_blueprint_with_a_budget_is_treated(prices):
    config = dataclasses.replace(CONFIG, memory=dataclasses.replace(CONFIG.memory, budget="700B"))
    assert blueprint(config)[0]().treatment == prices[2][3]
    assert blueprint(CONFIG)[0]().treatment == prices[2][0]
