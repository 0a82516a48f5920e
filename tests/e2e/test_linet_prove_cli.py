"""Plan and prove linet's own treatments, from the command line."""

import re

import pytest

from frostline.cli import prove as prove_command
from frostline.cli.main import main
from frostline.records import Plan, ProofCheck, ProofReport, from_json
from frostline.systems.linet.network import LINet
from frostline.systems.linet.treatment import Treatment

SMALL = [
    "--data.num-scenes", "16", "--data.image-size", "64", "--training.batch-size", "16",
    "--system.width-multiplier", "0.25", "--system.modality-dropout-ramp", "0",
]  # fmt: skip
TINY = [
    "--data.num-scenes", "8", "--data.image-size", "32", "--training.batch-size", "8",
    "--system.width-multiplier", "0.125", "--system.modality-dropout-ramp", "0",
]  # fmt: skip


def run(*words):
    return main([str(word) for word in words])


def test_a_plan_for_a_budget_is_proved_against_the_step_that_keeps_everything(tmp_path, capsys, monkeypatch):
    assert run("plan", "linet", *SMALL, "--memory.budget", "smallest", "--out", tmp_path / "plan.json", "--json") == 0
    made = from_json(capsys.readouterr().out)
    assert isinstance(made, Plan) and made.treated
    assert made.resident_bytes < made.predicted_peak_bytes < 0.8 * made.baseline_peak_bytes
    assert 0 < made.predicted_cost < 0.5
    used = []
    forward = LINet.forward
    monkeypatch.setattr(LINet, "forward", lambda self, *words: (used.append(self.treatment), forward(self, *words))[1])
    assert run("prove", "linet", *SMALL, "--plan", tmp_path / "plan.json") == 0
    shown = capsys.readouterr().out
    assert used[0] == Treatment() and used[1].stem_slices and "blocks" in used[1].blocks.values()
    for line in (r"EXACT: (\d+) of \1 gradients", "9 of 9 modules treated", "in-place masks +EXACT", "indexing +",
                 "forward with dropout +EXACT", "gradient flow +", "checkpoint per block +refused"):  # fmt: skip
        assert re.search(line, shown), line


def test_without_a_budget_the_configuration_is_proved(capsys):
    assert run("prove", "linet", *TINY, "--system.recompute", "activations", "--json") == 0
    report = from_json(capsys.readouterr().out)
    assert isinstance(report, ProofReport) and report.proof_class == "EXACT" and report.checks_pass
    assert [check.name for check in report.checks][:4] == [
        "in-place masks", "indexing", "forward with dropout", "gradient flow",
    ]  # fmt: skip


def test_a_budget_that_nothing_fits(capsys):
    assert run("plan", "linet", *TINY, "--memory.budget", "1MiB") == 1
    assert "no plan fits 1MiB: the smallest peak is" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("verdict", "code"), [("BOUNDED", 1), ("none", 1), ("ROUNDING", 0), ("refused", 0)])
def test_a_failed_check_is_an_exit_code(verdict, code, monkeypatch, capsys):
    import frostline.workflow.planning as planning

    report = ProofReport(
        proof_class="EXACT", worst=None, per_parameter=(), noise_floor=None, loss_difference=0.0,
        checks=(ProofCheck(name="indexing", verdict=verdict, text="3 of 4"),),
    )  # fmt: skip
    made = Plan(
        treatments=(), budget_bytes=0, predicted_peak_bytes=1, resident_bytes=1, baseline_peak_bytes=1,
        predicted_cost=0.0, proof_class="EXACT", method="predicted",
    )  # fmt: skip
    monkeypatch.setattr(planning, "prove_system", lambda *_, **__: (report, made))
    assert prove_command.prove("linet") == code
    assert re.search(rf"indexing +{verdict} +3 of 4", capsys.readouterr().out)
