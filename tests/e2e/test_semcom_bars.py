"""The full-length bars; `make bench` runs them."""

from pathlib import Path

import pytest

from frostline.cli.main import main
from frostline.records import EvaluationReport, PeakTable, from_json
from frostline.systems.semcom.pretrain import Recipe, pretrain


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_reaches_its_accuracy_far_above_the_alternatives(tmp_path: Path) -> None:
    assert main(["demo", "semcom", "--out", str(tmp_path / "demo")]) == 0
    report = from_json((tmp_path / "demo" / "evaluation.json").read_text())
    assert isinstance(report, EvaluationReport)
    assert report.facts["channel_uses"] == 64
    exact = {c.name: dict(zip(c.x, c.y, strict=True)) for c in report.curves if c.y_name == "exact answers"}
    assert exact["trained codec"][0] >= 0.70
    assert exact["trained codec"][10] >= 0.95
    for name in ("PCA + Wiener filter", "feature-MSE codec", "published recipe"):
        assert exact[name][0] <= 0.15, name
    assert max(exact["published recipe"].values()) == 0
    table = from_json((tmp_path / "demo" / "table.json").read_text())
    assert isinstance(table, PeakTable)
    rows = {row.name: row for row in table.rows}
    assert rows["frostline, this run"].peak_bytes <= 0.6 * rows["frozen"].peak_bytes
    assert rows["published-advice"].peak_bytes == rows["frozen"].peak_bytes


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_pretraining_from_nothing_reaches_the_shipped_accuracy(tmp_path: Path) -> None:
    assert pretrain(Recipe(), tmp_path) >= 0.98
