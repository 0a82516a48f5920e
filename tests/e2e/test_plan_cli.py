"""Plan, prove and train under a budget, from the command line to the files."""

import re
from dataclasses import replace

import pytest

from frostline.cli.main import main
from frostline.records import MemoryReport, Plan, ProofReport, RunReport, Treatment, from_json, to_json

SMALL = [
    "--data.num-scenes",
    "32",
    "--data.num-test",
    "20",
    "--training.batch-size",
    "16",
    "--memory.upstream-chunk",
    "8",
]


def run(*words: object) -> int:
    return main([str(word) for word in words])


def budget_between(capsys) -> str:
    """Half-way between the smallest peak of the step on fake tensors and the plain one."""
    assert run("plan", "semcom", *SMALL, "--memory.budget", "smallest", "--json") == 0
    made = from_json(capsys.readouterr().out)
    assert isinstance(made, Plan)
    assert made.predicted_peak_bytes < made.baseline_peak_bytes
    return str((made.predicted_peak_bytes + made.baseline_peak_bytes) // 2)


def test_a_plan_goes_to_a_file_and_is_proved_from_there(tmp_path, capsys):
    budget, file = budget_between(capsys), tmp_path / "plan.json"
    assert run("plan", "semcom", *SMALL, "--memory.budget", budget, "--out", file) == 0
    shown = capsys.readouterr().out
    assert re.search(r"receiver\.language_model\.\S+ .*checkpoint", shown)
    assert "predicted peak" in shown and "EXACT" in shown
    made = from_json(file.read_text())
    assert made.budget_bytes == int(budget) >= made.predicted_peak_bytes
    assert run("prove", "semcom", *SMALL, "--plan", file) == 0
    assert "EXACT: 12 of 12 gradients are equal bit by bit" in capsys.readouterr().out


def test_prove_makes_a_plan_for_a_budget(capsys):
    assert run("prove", "semcom", *SMALL, "--memory.budget", "smallest", "--json") == 0
    report = from_json(capsys.readouterr().out)
    assert isinstance(report, ProofReport)
    assert report.proof_class == "EXACT" and all(difference.equal for difference in report.per_parameter)


def test_train_measures_what_was_planned_and_ends_at_the_plain_bits(tmp_path, capsys):
    steps = [*SMALL, "--training.num-steps", 3, "--training.warmup-steps", 1]
    assert run("train", "semcom", *steps, "--out", tmp_path / "budget", "--memory.budget", "smallest") == 0
    assert "plan for smallest peak" in re.sub(r"\s+", " ", capsys.readouterr().err)
    assert run("train", "semcom", *steps, "--out", tmp_path / "plain", "--memory.checkpoint", "none") == 0
    made, measured = (from_json((tmp_path / "budget" / name).read_text()) for name in ("plan.json", "memory.json"))
    plain = from_json((tmp_path / "plain" / "memory.json").read_text())
    assert isinstance(made, Plan) and made.treated and isinstance(measured, MemoryReport)
    assert measured.peak_bytes == pytest.approx(made.predicted_peak_bytes, rel=0.005)
    assert plain.peak_bytes == pytest.approx(made.baseline_peak_bytes, rel=0.005)
    assert measured.peak_bytes < plain.peak_bytes
    weights = [(tmp_path / name / "codec.safetensors").read_bytes() for name in ("budget", "plain")]
    assert weights[0] == weights[1]
    capsys.readouterr()
    assert run("train", "semcom", *steps[:-4], "--training.num-steps", 4, "--training.warmup-steps", 1,
               "--out", tmp_path / "budget", "--resume", "--json") == 0  # fmt: skip
    assert isinstance(from_json(capsys.readouterr().out), RunReport), "a resumed run may take another budget"


@pytest.mark.parametrize("fake", [[], ["--fake"]])
def test_measure_counts_the_planned_step(fake, capsys):
    peaks = []
    for words in (["--memory.checkpoint", "none"], ["--memory.budget", "smallest"]):
        assert run("measure", "semcom", *SMALL, *words, *fake, "--json") == 0
        peaks.append(from_json(capsys.readouterr().out).peak_bytes)
    assert peaks[1] < peaks[0]


def test_a_budget_that_nothing_fits_ends_with_1_and_the_smallest_peak(capsys):
    assert run("plan", "semcom", *SMALL, "--memory.budget", "1MiB") == 1
    text = capsys.readouterr().err
    assert re.search(r"no plan fits into 1\.0 MiB: the smallest peak of this step is \d", text)
    assert "parameters" in text and "there before the step" in text


def plan_file(tmp_path, **changes):
    made = Plan(
        treatments=(Treatment(unit="no.such.layer", kind="checkpoint"),),
        budget_bytes=0,
        predicted_peak_bytes=1,
        resident_bytes=1,
        baseline_peak_bytes=1,
        predicted_cost=0.0,
        proof_class="EXACT",
        method="predicted",
    )
    file = tmp_path / "plan.json"
    file.write_text(to_json(replace(made, **changes)))
    return file


def test_what_cannot_be_carried_out_ends_with_2_and_one_error(tmp_path, capsys):
    other, nonsense = plan_file(tmp_path), tmp_path / "x.json"
    nonsense.write_text("{}")
    cases = {
        ("plan", "semcom"): "there is no budget to plan for",
        ("prove", "semcom"): "there is no budget to plan for",
        ("plan", "semcom", "--memory.budget", "many"): "'many' is not a size",
        ("plan", "semcom", "--memory.budget", "1GiB", "--system.codec", "none"): "0 trainable parameters",
        ("plan", "semcom", "--memory.budget", "1GiB", "--out", tmp_path): "the plan cannot be written",
        ("prove", "semcom", *SMALL, "--plan", other): "has no 'no.such.layer'",
        ("prove", "semcom", "--plan", other, "--memory.budget", "1GiB"): "there are a plan and a budget",
        ("prove", "semcom", "--plan", tmp_path / "none.json"): "cannot read the plan: No such file",
        ("prove", "semcom", "--plan", nonsense): "the file holds no plan",
    }
    for words, text in cases.items():
        assert run(*words) == 2, words
        assert text in capsys.readouterr().err, words


@pytest.mark.parametrize("verb", ["plan", "prove"])
def test_help_names_the_budget_and_the_exit_codes(verb, capsys):
    assert run(verb, "--help") == 0
    shown = capsys.readouterr().out
    assert "--memory.budget" in shown and "Exit codes" in shown
    assert run(verb, "semcom", "--help") == 0
    assert "--memory.budget" in capsys.readouterr().out
