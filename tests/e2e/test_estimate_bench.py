"""A few rows of bench/estimate.py."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

FOLDER = str(Path(__file__).parents[2] / "bench")


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    yield importlib.import_module("estimate")
    for name in ("estimate", "estimate_models"):
        sys.modules.pop(name, None)


def test_rows_are_within_one_percent_of_the_measurement(bench, monkeypatch, capsys):
    names = ["Swin", "U-Net", "Llama with LoRA"]
    monkeypatch.setattr(sys, "argv", ["estimate.py", "--json", "--only", *names])
    assert bench.main() == 0
    out = capsys.readouterr().out
    rows = json.loads(out[out.index("{\n") :])["rows"]
    assert sorted(row["model"] for row in rows) == sorted(names)
    for row in rows:
        assert abs(row["relative_error"]) <= 0.01, row
        assert row["relative_error"] == row["estimated_peak_bytes"] / row["measured_peak_bytes"] - 1
    by_name = {row["model"]: row for row in rows}
    for name in ("Swin", "Llama with LoRA"):  # no scratch memory inside their operators
        assert abs(by_name[name]["relative_error_to_allocator"]) <= 0.001


def test_the_saved_results_hold_what_they_promise():
    results = json.loads((Path(FOLDER) / "results" / "estimate.json").read_text(encoding="utf-8"))
    assert len(results["rows"]) >= 10
    assert all(abs(row["relative_error"]) <= 0.01 for row in results["rows"])
    assert "LSTM" in [refusal["model"] for refusal in results["refused"]]
    large = results["large"]
    assert large["estimate_seconds"] < 20 and large["process_peak_bytes"] < 2**30
