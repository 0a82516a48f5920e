"""`frostline audit` on scripts that know nothing of it, and on our own systems."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import frostline as fl
from frostline.cli.main import main
from frostline.errors import AuditError
from frostline.records import AuditReport, from_json, to_json
from frostline.systems.semcom import SemcomConfig
from frostline.systems.semcom.channel import Channel
from frostline.systems.semcom.config import SemcomDataConfig, SemcomTrainingConfig

HEAD = """
import torch
from torch import nn
torch.manual_seed(0)
front, back = nn.Linear(8, 8), nn.Linear(8, 1)
optimizer = torch.optim.SGD([*front.parameters(), *back.parameters()], lr=0.1)
"""
HEALTHY = """
for i in range(100):
    optimizer.zero_grad()
    loss = back(torch.relu(front(torch.randn(4, 8)))).square().mean()
    loss.backward()
    optimizer.step()
    print("step", i)
"""
CUT = """
for i in range(100):
    optimizer.zero_grad()
    hidden = torch.relu(front(torch.randn(4, 8))).detach()
    loss = back(hidden).square().mean()
    loss.backward()
    optimizer.step()
    print("step", i)
"""
SMALL = ["--data.num-scenes", "16", "--training.batch-size", "4", "--training.num-steps", "2"]


def write(folder: Path, text: str, name: str = "train.py", head: str = HEAD) -> Path:
    path = folder / name
    path.write_text(head + textwrap.dedent(text))
    return path


def run(*words: object) -> int:
    return main([str(word) for word in words])


def audited(capsys, path: Path, *words: object, code: int = 0) -> tuple[AuditReport, str]:
    """The report, all that went to standard output being its JSON; and what went to standard error."""
    assert run("audit", path, "--json", *words) == code
    out, err = capsys.readouterr()
    report = from_json(out)
    assert isinstance(report, AuditReport)
    assert from_json(to_json(report)) == report
    return report, err


def codes(report: AuditReport) -> set[str]:
    return {finding.code for finding in report.findings if finding.level != "note"}


def test_a_healthy_script_is_stopped_after_its_third_step(tmp_path, capsys):
    report, err = audited(capsys, write(tmp_path, HEALTHY))
    assert [line for line in err.splitlines() if line] == ["step 0", "step 1", "step 2"]
    assert codes(report) == set()
    assert report.num_steps == 3
    assert any("after 3 steps: the audit stopped the script there" in what for what in report.not_examined)
    assert {row.module for row in report.roles} == {"front", "back"}


@pytest.mark.parametrize("steps", [1, 2])
def test_steps_are_counted_in_each_phase(steps, tmp_path, capsys):
    text = """
    other = torch.optim.SGD(front.parameters(), lr=0.1)
    for i in range(100):
        for each in (optimizer, other):
            each.zero_grad()
            back(front(torch.randn(4, 8))).square().mean().backward()
            each.step()
        print("round", i)
    """
    report, _ = audited(capsys, write(tmp_path, text), "--steps", steps, "--accept", "FL209")
    assert [phase.num_steps for phase in report.phases] == [steps, steps]


def test_a_fault_is_shown_with_its_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, CUT)
    line = path.read_text().splitlines().index("    hidden = torch.relu(front(torch.randn(4, 8))).detach()") + 1
    assert run("audit", "train.py") == 1
    out = capsys.readouterr().out
    assert out.index("step 2") < out.index("FL104 'front.*' (2 parameters) learns nothing")
    assert f"  train.py:{line}  detach" in out
    assert "| hidden = torch.relu(front(torch.randn(4, 8))).detach()" in out
    for label in ("  evidence  ", "  so  ", "  do  ", "phase  SGD after train.py:", "module", "not examined  "):
        assert label in out
    assert out.splitlines()[-1].startswith("1 fault") and out.splitlines()[-1].endswith("see docs/rules/FL104.md")
    assert "\x1b" not in out
    assert all(text == text.rstrip() for text in out.splitlines())


def test_source_lines_can_be_left_out(tmp_path, capsys):
    assert run("audit", write(tmp_path, CUT), "--no-source") == 1
    out = capsys.readouterr().out
    assert "FL104" in out and "hidden = " not in out


def test_a_finding_can_be_accepted(tmp_path, capsys):
    path = write(tmp_path, CUT)
    report, _ = audited(capsys, path, "--accept", "fl104,FL502")
    assert [finding.accepted for finding in report.findings if finding.code == "FL104"] == ["accepted by --accept"]
    assert report.faults == ()
    path.write_text(path.read_text().replace(".detach()", ".detach()  # frostline: accept FL104 because it is a probe"))
    report, _ = audited(capsys, path)
    assert [finding.accepted for finding in report.findings if finding.code == "FL104"] == ["it is a probe"]
    assert run("audit", path) == 0
    out = capsys.readouterr().out
    assert "accepted: it is a probe" in out
    assert "no faults" in out.splitlines()[-1] and "1 accepted" in out.splitlines()[-1]


def test_intent_is_declared(tmp_path, capsys):
    path = write(tmp_path, HEALTHY)
    report, _ = audited(capsys, path, "--stay", "front.*", code=1)
    assert codes(report) == {"FL215"}
    frozen = write(tmp_path, "front.requires_grad_(False)\n" + HEALTHY, "frozen.py")
    report, _ = audited(capsys, frozen)
    assert codes(report) == set()
    for words in (["--learn", "back.*,front.*"], ["--learn", "back.*", "--learn", "front.*"]):
        report, _ = audited(capsys, frozen, *words, code=1)
        assert codes(report) == {"FL214"}
    text = HEALTHY.replace("loss =", "fit, size =").replace(".mean()", ".mean(), back.weight.square().sum()")
    terms = write(tmp_path, text.replace("loss.backward()", "loss = fit + size\n    loss.backward()"), "terms.py")
    report, _ = audited(capsys, terms, "--flow", "size=back.weight", "--flow", "fit=front.*,back.*")
    assert [term.term for term in report.terms] == ["fit", "size"]
    report, _ = audited(capsys, terms, "--flow", "size=front.*", code=1)
    assert codes(report) == {"FL112"}


def test_a_cut_is_proved_by_running_the_script_again(tmp_path, capsys):
    report, err = audited(capsys, write(tmp_path, CUT), "--probe", code=1)
    assert err.count("step 0") == 1, "the other runs are silent"
    (cut,) = report.faults
    assert cut.code == "FL104" and "finite difference: the loss changes by" in cut.evidence
    report, _ = audited(capsys, write(tmp_path, CUT.replace(".detach()", "") + "torch.ones(1)"), "--probe")
    assert codes(report) == set()


def test_arguments_go_to_the_script(tmp_path, capsys):
    text = """
    import argparse
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("rest", nargs="*")
    options = parser.parse_args()
    print(options)
    for _ in range(options.steps):
        optimizer.zero_grad()
        back(front(torch.randn(4, 8))).sum().backward()
        optimizer.step()
    """
    path = write(tmp_path, text)
    report, err = audited(capsys, path, "--steps", 5, "--", "--steps", 2, "--json", "a")
    assert "Namespace(steps=2, json=True, rest=['a'])" in err
    assert report.num_steps == 2
    assert any("after 2 steps: the script ended there by itself" in what for what in report.not_examined)
    report, _ = audited(capsys, path, "--steps", 2, "--", "--steps", 2)
    assert not any("the script" in what for what in report.not_examined)
    assert run("audit", path, "--", "--steps", "two") == 2
    out, err = capsys.readouterr()
    assert out == "" and "invalid int value: 'two'" in err
    assert err.endswith("frostline: the script exited with exit code 2; nothing was audited\n")


def test_an_error_without_a_finding_is_told_and_exits_with_2(tmp_path, capsys):
    path = write(tmp_path, HEALTHY.replace('print("step", i)', "assert i < 1, 'diverged'"))
    report, err = audited(capsys, path, code=2)
    assert report.num_steps == 2
    assert any("the script failed there by AssertionError: diverged" in what for what in report.not_examined)
    assert "AssertionError: diverged" in err and f'File "{path}", line ' in err and "frostline/" not in err
    assert run("audit", write(tmp_path, "raise KeyError('config')\n")) == 2
    out, err = capsys.readouterr()
    assert out == "" and "KeyError: 'config'" in err


def test_an_error_that_is_explained_is_a_fault(tmp_path, capsys):
    text = """
    with torch.inference_mode():
        x = front(torch.randn(4, 8))
    back(x).sum().backward()
    """
    report, err = audited(capsys, write(tmp_path, text), code=1)
    assert codes(report) == {"FL110"}
    assert "RuntimeError: Inference tensors cannot be saved for backward" in err
    assert any(what.startswith("everything: the script failed there by RuntimeError") for what in report.not_examined)


def test_a_script_that_steps_no_optimizer_is_no_success(tmp_path, capsys):
    report, err = audited(capsys, write(tmp_path, "print(back(front(torch.ones(1, 8))).shape)\n"), code=2)
    assert report.num_steps == 0
    assert any("no optimizer stepped" in what for what in report.not_examined)
    assert err.endswith("frostline: nothing was audited: no optimizer stepped\n")
    assert "Traceback" not in err


def test_ctrl_c_tells_what_was_found_until_then(tmp_path, capsys):
    assert run("audit", write(tmp_path, "raise KeyboardInterrupt\n")) == 130
    out = capsys.readouterr().out
    assert "interrupted after no steps" in out and "no faults" not in out
    path = write(tmp_path, CUT.replace("optimizer.step()", "optimizer.step()\n    if i: raise KeyboardInterrupt", 1))
    report, _ = audited(capsys, path, code=130)
    assert codes(report) == {"FL104"}


def test_a_module_runs(tmp_path, capsys, monkeypatch):
    (tmp_path / "pack").mkdir()
    write(tmp_path / "pack", "", "__init__.py", head="")
    write(tmp_path / "pack", CUT, "fit.py")
    monkeypatch.chdir(tmp_path)
    report, _ = audited(capsys, Path("pack.fit"), "-m", code=1)
    assert codes(report) == {"FL104"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.py"], "cannot read the script: No such file or directory"),
        (["no.such", "-m"], "there is no module 'no.such' that can be run"),
        (["train.py", "--accept", "FL999"], "there is no finding 'FL999'"),
        (["train.py", "--flow", "policy"], "'policy' does not say what a loss term trains"),
        (["train.py", "--flow", "=actor.*"], "write TERM=GLOB"),
        (["train.py", "--flow", "policy="], "write TERM=GLOB"),
        (["train.py", "--steps", "0"], "Must be >= 1"),
        (["train.py", "--learn"], "--learn requires an argument"),
        (["train.py", "--lern", "head.*"], "'--lern' is none of the options before --"),
        (["train.py", "--device", "cpu"], "a script runs as it is"),
        (["train.py", "--print-config"], "a script runs as it is"),
        (["semcom", "--", "--lr", "1"], "only a training script takes arguments behind --"),
        (["semcon"], "semcon"),
        (["semcom", "--training.batch-sise", "1"], "batch-sise"),
        (["semcom", "--system.codec", "none"], "0 trainable parameters"),
    ],
)
def test_what_cannot_be_audited_says_why_and_exits_with_2(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "print('it ran')\n")
    assert run("audit", *words) == 2
    out, err = capsys.readouterr()
    assert message in err and "Traceback" not in err and err.count("frostline: ") == 1
    assert "it ran" not in out + err


def test_help_is_asked_of_a_script_and_of_a_system(tmp_path, capsys):
    assert run("audit", write(tmp_path, ""), "--help") == 0
    assert "--learn" in capsys.readouterr().out
    assert run("audit", "semcom", "--help") == 0
    assert "--training.batch-size" in capsys.readouterr().out


def test_a_process_of_its_own_prints_clean_json(tmp_path):
    path = write(tmp_path, 'import os\nos.system("echo child")\n' + CUT)
    command = [sys.executable, "-m", "frostline", "audit", path, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert codes(from_json(done.stdout)) == {"FL104"}
    assert "child" in done.stderr and "step 2" in done.stderr


def test_training_is_the_same_under_the_audit(tmp_path, capsys):
    """The same losses, bit by bit, as without it."""
    text = HEALTHY.replace("100", "4").replace('print("step", i)', "print('loss', loss.item().hex())")
    path = write(tmp_path, text + "print('state', torch.get_rng_state().sum().item())\n")
    plain = subprocess.run([sys.executable, path], capture_output=True, text=True, check=True).stdout.splitlines()
    _, err = audited(capsys, path, "--steps", 9)
    assert [line for line in err.splitlines() if line] == plain
    assert len(plain) == 5


def cut_behind_the_channel(monkeypatch) -> None:
    whole = Channel.forward
    monkeypatch.setattr(Channel, "forward", lambda self, *given: whole(self, *given).detach())


def test_our_own_systems_have_no_fault(capsys):
    assert run("audit", "semcom", "--json", "--steps", 2, *SMALL) == 0
    report = from_json(capsys.readouterr().out)
    assert [finding for finding in report.findings if finding.level != "note"] == []
    assert report.num_steps == 2
    roles = {row.module: row.role for row in report.roles}
    assert roles["transmitter.compression"] == roles["receiver.decompression"] == "trainable"
    assert roles["transmitter.tower"] == "upstream"


def test_a_fault_in_a_system_is_found_against_its_own_intent(capsys, monkeypatch):
    cut_behind_the_channel(monkeypatch)
    assert run("audit", "semcom", "--json", *SMALL) == 1
    report = from_json(capsys.readouterr().out)
    cut = {name for finding in report.faults for name in finding.parameters}
    assert {name.partition(".")[0] for name in cut} == {"transmitter"}
    assert "FL104" in codes(report)
    assert run("audit", "semcom", "--json", "--probe", *SMALL) == 1
    assert "finite difference" in capsys.readouterr().out
    assert run("audit", "semcom", "--stay", "receiver.decompression.*", *SMALL) == 1
    assert "FL215" in capsys.readouterr().out


def test_a_faulty_first_step_stops_a_run(tmp_path, capsys, monkeypatch):
    cut_behind_the_channel(monkeypatch)
    out = tmp_path / "run"
    assert run("train", "semcom", "--out", out, *SMALL) == 1
    written, err = capsys.readouterr()
    assert written == ""
    assert "frostline: nothing was trained: 1 fault in the first step" in err
    assert "FL104" in err and "do     mend the step, or accept what is meant: --accept FL104" in err
    assert {path.name for path in out.iterdir()} == {"audit.json"}
    report = from_json((out / "audit.json").read_text())
    assert [finding.code for finding in report.faults] == ["FL104"]
    config = SemcomConfig(data=SemcomDataConfig(num_scenes=16), training=SemcomTrainingConfig(batch_size=4))
    with pytest.raises(AuditError, match="FL104"):
        fl.train(config, out=out)


def test_an_accepted_fault_lets_a_run_begin(tmp_path, capsys, monkeypatch):
    cut_behind_the_channel(monkeypatch)
    assert run("train", "semcom", "--out", tmp_path, "--accept", "FL104", "--json", *SMALL) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["num_steps"] == 2
    assert "audited in" in err and "no faults, 1 accepted" in " ".join(err.split())
    assert run("train", "semcom", "--out", tmp_path / "other", "--accept", "FL1", *SMALL) == 2
    assert "there is no finding 'FL1'" in capsys.readouterr().err
