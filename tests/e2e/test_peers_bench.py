"""Two tiny models in bench/peers.py and bench/lean.py, and what their saved results promise."""

import dataclasses
import importlib
import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

FOLDER = Path(__file__).parents[2] / "bench"
SAME = ("EXACT", "ROUNDING")


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    yield importlib.import_module("peers")
    for name in ("peers", "peer_models", "peer_methods", "lean"):
        sys.modules.pop(name, None)


@pytest.fixture
def tiny(bench, monkeypatch):
    models = importlib.import_module("peer_models")

    def trunk():
        layers = (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        last = (nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        return nn.Sequential(models.Stage(*layers), models.Stage(*last), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    table = {
        "conv": partial(models.conv_case, trunk, 8, batch_size=2, size=32),
        "transformer": partial(models.transformer_case, width=32, num_layers=3, batch_size=2, length=32),
    }
    monkeypatch.setattr(bench, "MODELS", table)
    monkeypatch.setattr(bench, "_SECONDS_A_CELL", 0.1)
    return table


def call(bench, monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["peers.py", "--json", *words])
    assert bench.main() == 0
    return json.loads(capsys.readouterr().out)["rows"]


def test_cells_are_measured_compared_and_kept(bench, tiny, monkeypatch, capsys, tmp_path):
    out = tmp_path / "peers.json"
    asked = ["--out", str(out), "--methods", "plain", "torch-checkpoint", "save-on-cpu", "frostline"]
    rows = call(bench, monkeypatch, capsys, *asked)
    cells = {(row["model"], row["method"]): row for row in rows}
    assert len(rows) == 8
    for model in tiny:
        plain, peer, nothing, ours = (
            cells[model, name] for name in ("plain", "torch-checkpoint", "save-on-cpu", "frostline")
        )
        assert ours["proof_class"] == peer["proof_class"] == "EXACT" and ours["max_rel_grad_diff"] == 0.0
        assert ours["peak_bytes"] <= peer["peak_bytes"] <= plain["peak_bytes"] > ours["peak_bytes"]
        assert len({row["resident_bytes"] for row in (plain, peer, ours)}) == 1
        assert all(row["step_seconds_ratio"] > 0 for row in (plain, peer, ours))
        assert nothing["peak_bytes"] is None and "the host" in nothing["reason"]
    assert bench.shortfalls(rows) == []

    saved = out.read_text(encoding="utf-8")
    assert json.loads(saved)["rows"] == rows
    monkeypatch.setattr(bench, "cell", lambda *_: pytest.fail("a finished cell was measured again"))
    assert call(bench, monkeypatch, capsys, *asked) == rows


def test_a_wrong_gradient_and_a_lower_peer_are_told(bench, tiny, monkeypatch, capsys, tmp_path):
    methods = importlib.import_module("peer_methods")

    def drop_a_gradient(case):
        case.model.front.bias.requires_grad_(False)

    broken = dataclasses.replace(methods.METHODS["plain"], apply=drop_a_gradient)
    monkeypatch.setitem(methods.METHODS, "fairscale", broken)
    asked = ["--out", str(tmp_path / "peers.json"), "--models", "conv", "--methods", "plain", "fairscale", "frostline"]
    rows = call(bench, monkeypatch, capsys, *asked)
    assert [row["proof_class"] for row in rows] == ["EXACT", "BOUNDED", "EXACT"]
    assert "BOUNDED" in bench.table(rows)
    rows[0]["peak_bytes"] = rows[2]["peak_bytes"] - 2**20
    assert bench.shortfalls(rows) == ["conv: plain needs 1.00 MiB less than frostline"]


def test_a_peer_that_fails_is_a_row_and_frostline_is_an_error(bench, tiny, monkeypatch, capsys, tmp_path):
    methods = importlib.import_module("peer_methods")

    def fail(case):
        raise ValueError("not today")

    for name in ("fairscale", "frostline"):
        broken = dataclasses.replace(methods.METHODS[name], apply=fail, lacks=lambda: "", package="frostline")
        monkeypatch.setitem(methods.METHODS, name, broken)
    monkeypatch.setitem(methods.METHODS, "fairscale", dataclasses.replace(broken, package="torch"))
    asked = ["--out", str(tmp_path / "peers.json"), "--models", "conv", "--methods"]
    (row,) = call(bench, monkeypatch, capsys, *asked, "fairscale")
    assert row["peak_bytes"] is None and row["reason"] == "fails: ValueError: not today"
    with pytest.raises(ValueError, match="not today"):
        call(bench, monkeypatch, capsys, *asked, "frostline")


def test_a_lean_trial_counts_what_backward_keeps(bench, tiny):
    lean = importlib.import_module("lean")
    trial = lean.Trial(model="conv", treatment="lean_", make=tiny["conv"], treat=lean._lean, target=8)
    result = lean.row(trial, rounds=1)
    # BatchNorm's input and the ReLU's output of each stage, the pooling's indices and its and the head's input, the
    # mean's difference; then bits, one byte a pooled place, and that difference.
    assert result["plain_kept_bytes"] > 8 * result["kept_bytes"] > 0
    assert result["proof_class"] == "EXACT" and result["peak_ratio"] > 1
    assert lean.met(result | {"step_seconds_ratio": 1.0}) and not lean.met(result | {"step_seconds_ratio": 1.6})


def test_the_saved_results_hold_what_they_promise(bench):
    rows = json.loads((FOLDER / "results" / "peers.json").read_text(encoding="utf-8"))["rows"]
    cells = {(row["model"], row["method"]): row for row in rows}
    assert set(cells) == {(model, method) for model in bench.MODELS for method in bench.METHODS}
    assert all(row["peak_bytes"] is not None or row["reason"] for row in rows)
    assert bench.shortfalls(rows) == []
    for row in rows:
        if bench.METHODS[row["method"]].ours and row["peak_bytes"] is not None:
            assert row["proof_class"] in SAME, row
    for page in bench.DOCUMENTS:
        assert bench.table(rows) in page.read_text(encoding="utf-8")


def test_the_saved_lean_results_hold_what_they_promise(bench):
    lean = importlib.import_module("lean")
    rows = json.loads(lean.RESULTS.read_text(encoding="utf-8"))["rows"]
    assert [row["model"] for row in rows] == [trial.model for trial in lean.TRIALS]
    assert all(lean.met(row) for row in rows)
    assert lean.table(rows) in lean.DOCUMENT.read_text(encoding="utf-8")
