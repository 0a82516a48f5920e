"""The audit's score on programs with a known fault, and the script that keeps it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "bench" / "audit_cases.py"
SHARED = ROOT.parent / "shared" / "audit-cases"
OWN = ROOT / "tests" / "audit_cases"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("audit_cases", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["audit_cases"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["audit_cases"]


@pytest.fixture
def sums(bench, capsys):
    def run(folder, *arguments):
        assert bench.main([str(folder), "--json", *arguments]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def program(folder, name, kind, codes, step, build="torch.nn.Linear(3, 2)", more=""):
    text = f"""
    import torch
    from types import SimpleNamespace
    META = dict(id="{name}", kind="{kind}", codes={codes}, learn=["*"], {more})
    def build(fixed=False):
        model = {build}
        return SimpleNamespace(model=model, opt=torch.optim.SGD(model.parameters(), lr=0.1), fixed=fixed)
    def step(s):
        s.opt.zero_grad()
        {step}
        s.opt.step()
    """
    (folder / f"{name}.py").write_text(dedent(text))


CUT = (
    "h = s.model(torch.randn(4, 3)); h = h if s.fixed else h.detach().requires_grad_(True); h.square().sum().backward()"
)
WHOLE = "s.model(torch.randn(4, 3)).square().sum().backward()"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared cases lie beside this repository, not in it")
def test_the_shared_cases():
    done = subprocess.run(
        [sys.executable, SCRIPT, SHARED, "--json"], check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    sums = json.loads(done.stdout)
    assert (sums["num_faults"], sums["num_locatable"]) == (30, 30)
    assert sums["false_alarms"] == []
    assert sums["num_right"] >= 28, sums["missed"]
    assert sums["num_located"] >= 0.85 * sums["num_locatable"]


def test_own_cases(sums):
    found = sums(OWN)
    del found["seconds"]
    assert found == {
        "num_faults": 5,
        "num_right": 5,
        "num_locatable": 5,
        "num_located": 5,
        "false_alarms": [],
        "missed": [],
    }


def test_a_miss_a_false_alarm_and_a_wrong_line_count_as_such(sums, tmp_path):
    program(tmp_path, "001", "fault", ["not-in-optimizer"], CUT)  # reported, but as something else
    program(tmp_path, "002", "fault", ["grad-cut/reattach"], CUT.replace("s.fixed", "False"))  # the twin is ill too
    program(tmp_path, "003", "control", [], CUT)
    program(tmp_path, "004", "fault", ["grad-cut/detach"], CUT)
    program(tmp_path, "005", "control", [], WHOLE)
    rows = [{"id": "004", "fault_lines": [2]}, {"id": "002", "fault_lines": [10]}]
    (tmp_path / "cases.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    found = sums(tmp_path)
    assert found["missed"] == ["001"]
    assert found["false_alarms"] == ["002", "003"]
    assert (found["num_faults"], found["num_right"]) == (3, 1)
    assert (found["num_locatable"], found["num_located"]) == (2, 1)


def test_lines_marked_in_the_source_are_as_good_as_listed_ones(sums, tmp_path):
    program(tmp_path, "010", "fault", ["grad-cut/reattach"], CUT + "  # FAULT")
    found = sums(tmp_path)
    assert (found["num_locatable"], found["num_located"], found["num_right"]) == (1, 1, 1)


def test_an_exception_is_part_of_the_experiment(sums, bench, tmp_path, capsys):
    program(tmp_path, "020", "fault", ["grad-cut"], "s.model(torch.ones(3)) if s.fixed else 1 / 0")
    program(
        tmp_path, "021", "fault", ["empty-optimizer"], WHOLE, "torch.nn.ReLU() if not fixed else torch.nn.Linear(3, 2)"
    )
    found = sums(tmp_path)
    assert (found["num_right"], found["missed"]) == (1, ["020"])
    assert bench.main([str(tmp_path)]) == 0
    assert "020: it raised ZeroDivisionError: division by zero" in capsys.readouterr().out


def test_a_case_changes_nothing_for_the_next_one(sums, tmp_path):
    spoil = (
        "torch.set_default_dtype(torch.float64); torch.set_grad_enabled(False); torch.manual_seed(5); print('hello');"
        "__import__('warnings').warn('hello'); torch.set_num_threads(3); torch.autograd.set_detect_anomaly(True)"
    )
    program(tmp_path, "030", "control", [], f"{spoil}; s.model.float()")
    program(tmp_path, "031", "control", [], f"assert torch.get_default_dtype() == torch.float32; {WHOLE}")
    state, num_threads = torch.get_rng_state(), torch.get_num_threads()
    found = sums(tmp_path)  # no word but the JSON
    assert "031" not in found["false_alarms"]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_num_threads() == num_threads
    assert torch.is_grad_enabled() and not torch.is_anomaly_enabled()


def test_one_case_alone_and_the_table(bench, capsys):
    assert bench.main([str(OWN), "--case", "302"]) == 0
    text = capsys.readouterr().out
    assert "not-in-optimizer" in text and "FL201" in text and "301" not in text
    assert "1 of 1 faults right, 1 of 1 located, 0 false alarms in 1 healthy programs" in text


@pytest.mark.parametrize("text", [None, "", "META = {}", "1 / 0"])
def test_a_wrong_folder_is_an_error(bench, capsys, tmp_path, text):
    if text is not None:
        (tmp_path / "001.py").write_text(text)
    assert bench.main([str(tmp_path)]) == 2
    assert bench.main([str(OWN), "--case", "999"]) == 2
    assert "audit_cases.py: " in capsys.readouterr().err
