"""``frostline report``: records and runs, on the terminal, as a page, as JSON."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from frostline.cli.main import main
from frostline.records import (
    AuditReport,
    Curve,
    EvaluationReport,
    GradientDifference,
    LivePoint,
    MemoryReport,
    PeakRow,
    PeakTable,
    Plan,
    ProofReport,
    RunReport,
    StepRecord,
    Treatment,
    from_json,
    to_json,
)
from frostline.reports.views import sparkline
from frostline.units import MIB

SCRIPT = Path(__file__).parents[1] / "audit_scripts" / "published" / "semcom_no_grad.py"
MEMORY = MemoryReport(
    peak_bytes=30 * MIB,
    resident_bytes=10 * MIB,
    by_category={"parameters": 10 * MIB, "temporaries": 20 * MIB},
    by_module={"net.fc": 20 * MIB},
    peak_at="backward · aten.gelu",
    peak_line="",
    timeline=(LivePoint(event=0, live_bytes=10 * MIB), LivePoint(event=1, live_bytes=30 * MIB)),
    method="measured",
    device="cpu",
    num_ops=7,
    not_seen=(),
)
STEP = StepRecord(
    phase="codec",
    step=1,
    loss=4.0,
    terms={},
    learning_rate=1e-3,
    gradient_norm=1.0,
    loss_scale=1.0,
    skipped=False,
    num_skipped=0,
    allocated_bytes=0,
    reserved_bytes=0,
    peak_bytes=0,
    data_seconds=0.0,
    step_seconds=0.1,
)
LAST = replace(STEP, step=2, loss=2.0)
RUN = RunReport(
    system="semcom",
    num_steps=2,
    num_trainable=1,
    num_frozen=2,
    first=(STEP,),
    last=(LAST,),
    wall_seconds=1.0,
    interrupted=False,
    directory="runs/a",
)
AUDIT = AuditReport(findings=(), phases=(), roles=(), terms=(), not_examined=(), num_steps=1, wall_seconds=0.1)
PLAN = Plan(
    treatments=(Treatment(unit="net.fc", kind="checkpoint"),),
    budget_bytes=20 * MIB,
    predicted_peak_bytes=19 * MIB,
    resident_bytes=10 * MIB,
    baseline_peak_bytes=30 * MIB,
    predicted_cost=0.1,
    proof_class="EXACT",
    method="predicted",
)
WORST = GradientDifference(name="fc.weight", equal=False, max_relative=2e-7, cosine=1.0)
PROOF = ProofReport(proof_class="ROUNDING", worst=WORST, per_parameter=(WORST,), noise_floor=1e-7, loss_difference=0.0)
ROW = PeakRow(
    name="frozen",
    peak_bytes=30 * MIB,
    resident_bytes=10 * MIB,
    peak_at="forward",
    proof_class="EXACT",
    max_rel_grad_diff=0.0,
    trains="codec",
    step_seconds_ratio=1.0,
)
TABLE = PeakTable(system="semcom", setting="batch 8", rows=(ROW,))
SCORES = EvaluationReport(
    system="semcom",
    title="captions of scenes",
    x_name="Es/N0 in dB",
    curves=(Curve(name="codec", y_name="exact answers", x=(0.0, 6.0), y=(0.5, 0.9)),),
    facts={},
)
FILES = {
    "audit.json": AUDIT,
    "memory.json": MEMORY,
    "plan.json": PLAN,
    "proof.json": PROOF,
    "run.json": RUN,
    "table.json": TABLE,
    "evaluation.json": SCORES,
}


def run(*words: object) -> int:
    return main(["report", *(str(word) for word in words)])


@pytest.fixture
def directory(tmp_path):
    """A run's directory with everything it may hold, and some files that are none of ours."""
    here = tmp_path / "a run"
    here.mkdir()
    for name, record in FILES.items():
        (here / name).write_text(to_json(record, indent=1))
    log = [to_json(STEP), json.dumps({"warning": "it waits", "step": 2}), to_json(LAST)]
    (here / "log.jsonl").write_text("\n".join(log) + '\n{"record": "StepRec')
    (here / "config.yaml").write_text("name: semcom\n")
    (here / "codec.safetensors").write_bytes(b"\xff\x00")
    return here


def test_a_directory_shows_all_that_is_there(directory, capsys):
    assert run(directory) == 0
    out, err = capsys.readouterr()
    for text in (
        "no faults in 1 step",
        "measured peak 30.0 MiB",
        "plan for a budget of 20.0 MiB",
        "ROUNDING: 0 of 1 gradients are equal bit by bit",
        "semcom: done after 2 steps",
        "codec: steps 1 to 2, loss 4.0000 -> 2.0000  █▁",
        "batch 8",
        "captions of scenes",
    ):
        assert text in out, text
    assert "it waits" in err


def test_a_directory_as_a_page(directory, tmp_path, capsys):
    page = tmp_path / "out.html"
    assert run(directory, "--html", page) == 0
    assert capsys.readouterr().out.startswith(f"{page}: ")
    text = page.read_text(encoding="utf-8")
    for part in (
        "Gradient flow",
        "Memory of a step",
        "Plan",
        "Proof",
        "Before and after",
        "Training run",
        "Evaluation",
    ):
        assert f">{part}" in text, part
    assert "name: semcom" in text and "it waits" in text and "<h1>a run</h1>" in text
    assert "budget 20.0 MiB" in text
    assert str(tmp_path) not in text.replace(RUN.directory, ""), "a page does not tell where it was made"


def test_one_file_as_json_is_the_record_itself(directory, capsys):
    assert run(directory / "memory.json", "--json") == 0
    assert from_json(capsys.readouterr().out) == MEMORY


def test_several_as_json_are_a_list_that_can_be_read_again(directory, tmp_path, capsys):
    assert run(directory, "--json") == 0
    out = capsys.readouterr().out
    records = [from_json(json.dumps(document)) for document in json.loads(out)]
    assert {type(record) for record in records} == {type(record) for record in (*FILES.values(), STEP)}
    again = tmp_path / "all.json"
    again.write_text(out)
    assert run(again, "--json") == 0
    assert capsys.readouterr().out == out


def test_records_by_name_are_read_as_the_demonstration_writes_them(tmp_path, capsys):
    path = tmp_path / "demo.json"
    path.write_text(json.dumps({"run": json.loads(to_json(RUN)), "table": json.loads(to_json(TABLE))}))
    assert run(path) == 0
    out = capsys.readouterr().out
    assert "semcom: done after 2 steps" in out and "batch 8" in out


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("not json", "not a record, for it is not JSON"),
        ("", "not a record, for it is not JSON"),
        ("3", "not a record: it is a JSON int"),
        ("[null]", "not a record: it is a JSON NoneType"),
        ("{}", "'record' is None"),
        ('{"record": "Other"}', "'record' is 'Other'"),
        ('{"record": ["a"]}', "'record' is ['a']"),
        ('{"a": {"record": "Plan"}, "b": 1}', "'record' is None"),
        ('{"warning": "it waits"}', "'record' is None"),
        ("[]", "it holds no records"),
        (b"\xff\xfe\x00", "not a record: it is no text"),
    ],
)
def test_a_file_that_is_no_record(content, what, tmp_path, capsys):
    path = tmp_path / "x.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert run(path) == 2
    out, err = capsys.readouterr()
    assert out == "" and what in err and f"where  {path}" in err
    assert "do     name a file that --json wrote, or the directory of a run" in err


def test_a_record_of_another_version_is_told_from_a_file_that_is_none(tmp_path, capsys):
    path = tmp_path / "memory.json"
    path.write_text(json.dumps({**json.loads(to_json(MEMORY)), "by_stream": {}}))
    assert run(path) == 2
    err = capsys.readouterr().err
    assert "unknown ['by_stream']" in err and str(path) in err
    assert "do     another version of frostline wrote it" in err


def test_what_is_not_there(tmp_path, capsys):
    assert run(tmp_path / "no.json") == 2
    assert "it cannot be read: No such file or directory" in capsys.readouterr().err
    assert run(tmp_path) == 2
    assert "the directory holds no records" in capsys.readouterr().err
    assert run() == 2
    assert "path" in capsys.readouterr().err.lower()


def test_a_page_that_cannot_be_written(directory, tmp_path, capsys):
    record = directory / "memory.json"
    assert run(record, "--html", tmp_path / "no" / "out.html") == 2
    assert "the page cannot be written: No such file or directory" in capsys.readouterr().err
    assert run(record, "--html", record) == 2
    assert "the page would overwrite a record" in capsys.readouterr().err
    assert run(directory, "--html", record) == 2
    assert "the page would overwrite a record" in capsys.readouterr().err
    assert from_json(record.read_text()) == MEMORY


def test_an_audited_script_shows_its_lines_unless_they_are_left_out(tmp_path, capsys):
    assert main(["audit", str(SCRIPT), "--json"]) == 1
    path, page = tmp_path / "audit.json", tmp_path / "audit.html"
    path.write_text(capsys.readouterr().out)
    line = "with torch.no_grad():"
    assert run(path) == 0
    assert line in capsys.readouterr().out
    assert run(path, "--no-source") == 0
    assert line not in capsys.readouterr().out
    assert run(path, "--html", page) == 0
    assert line in page.read_text() and "FL101" in page.read_text()
    assert run(path, "--html", page, "--no-source") == 0
    assert line not in page.read_text()


def test_a_report_takes_no_torch(directory, tmp_path):
    code = (
        "import sys; from frostline.cli.main import main; code = main(sys.argv[1:]);"
        "loaded = {'torch', 'numpy', 'matplotlib'} & set(sys.modules); sys.exit(code or 3 * bool(loaded))"
    )
    words = ["report", str(directory), "--html", str(tmp_path / "out.html")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env=environment, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "warning: log.jsonl, step 2: it waits\n")


def test_a_sparkline_has_gaps_where_a_loss_is_not_finite():
    assert sparkline([0.0, 7.0, float("nan"), 3.5]) == "▁█ ▅"
    assert len(sparkline(range(1000))) == 40
    assert sparkline([]) == ""
    assert sparkline([float("inf")]) == " "
