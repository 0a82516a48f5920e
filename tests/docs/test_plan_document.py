"""What docs/plan.md shows is what happens."""

import json
import re
from pathlib import Path

import pytest

from frostline.errors import BudgetError
from frostline.planner import plan
from frostline.planner.treatments import WAYS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")


def test_the_sample_prints_what_is_shown_and_a_smaller_budget_says_what_holds_it(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    shown, refused = re.findall(r"```text\n(.*?)```", TEXT, re.DOTALL)
    names = {"__name__": "document"}
    exec(compile(code, "docs/plan.md", "exec"), names)
    assert capsys.readouterr().out == shown
    with pytest.raises(BudgetError) as raised:
        plan(names["step"], names["model"], budget="5MiB", optimizers=[names["optimizer"]], inputs=names["x"])
    assert str(raised.value).startswith(refused)


def test_the_table_names_every_treatment_with_its_class():
    rows = re.findall(r"^\| (`.*?) \| .* \| `(\w+)` \|$", TEXT, re.M)
    told = {kind: proof_class for kinds, proof_class in rows for kind in re.findall(r"`(.*?)`", kinds)}
    assert told == {kind: way.proof_class for kind, way in WAYS.items()}


def test_the_table_of_budgets_is_what_was_measured():
    results = json.loads((ROOT / "bench" / "results" / "plan.json").read_text(encoding="utf-8"))
    shown = re.findall(r"^\| (.+?) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) % \| (\w+) \|$", TEXT, re.M)
    mebibytes = ("budget_bytes", "measured_peak_bytes", "plain_peak_bytes")
    measured = [
        (
            row["model"],
            *(f"{row[key] / 2**20:.1f}" for key in mebibytes),
            f"{row['extra_work']:.1%}"[:-1],
            row["gradients"],
        )
        for row in results["rows"]
    ]
    assert shown and all(row in measured for row in shown)


def test_budgets_are_kept_and_no_choice_is_much_better():
    results = json.loads((ROOT / "bench" / "results" / "plan.json").read_text(encoding="utf-8"))
    assert len(results["rows"]) == 18 and len({row["model"] for row in results["rows"]}) == 3
    assert all(row["measured_peak_bytes"] <= row["budget_bytes"] for row in results["rows"])
    assert len(results["exhaustive"]) == 18
    assert all(row["extra_work"] <= 1.1 * row["best_extra_work"] + 1e-9 for row in results["exhaustive"])
    assert results["large"]["plan_seconds"] < 90 and results["large"]["process_peak_bytes"] < 2**30
    assert f"{results['large']['plan_seconds']:.0f} s" in TEXT
