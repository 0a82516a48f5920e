"""Every verb on linet, from the command line to the files."""

import csv
import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import frostline as fl
from frostline.cli.main import main
from frostline.records import AuditReport, EvaluationReport, MemoryReport, PeakTable, RunReport, from_json
from frostline.systems.linet import LinetConfig
from frostline.systems.linet.config import LinetDataConfig, LinetSystemConfig, LinetTrainingConfig
from frostline.systems.registry import demo_file

SMALL = [
    "--data.num-scenes", "48", "--data.num-test", "20", "--training.batch-size", "8", "--training.log-every", "2",
    "--system.width-multiplier", "0.125", "--system.modality-dropout-ramp", "0", "--training.schedule", "constant",
    "--training.warmup-steps", "2",
]  # fmt: skip


def run(*words):
    return main([str(word) for word in words])


def train(out, num_steps, *words):
    return run("train", "linet", "--out", out, "--training.num-steps", num_steps, *SMALL, *words)


def weights(directory):
    return load_file(directory / "network.safetensors")


def test_train_and_evaluate_write_their_files(tmp_path, capsys):
    assert train(tmp_path / "run", 4) == 0
    out, err = capsys.readouterr()
    assert "done after 4 steps" in out
    for part in (
        "colour",
        "depth",
        "integrated pathway",
        "classifier",
        "modality dropout one_of_n: rate 0.2",
        "no faults",
    ):
        assert part in " ".join(err.split())
    names = {"network.safetensors", "resume.pt", "config.yaml", "log.jsonl", "run.json", "memory.json", "audit.json"}
    assert {file.name for file in (tmp_path / "run").iterdir()} == names
    saved = weights(tmp_path / "run")
    assert int(saved["bn1.num_batches_tracked"]) == 4, "one batch a step, and none for what was looked at before"
    assert run("evaluate", "linet", "--checkpoint", tmp_path / "run", "--json") == 0
    report = from_json(capsys.readouterr().out)
    assert isinstance(report, EvaluationReport) and report.facts["num_test_samples"] == 20
    with (tmp_path / "run" / "evaluation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["method"] for row in rows} == {"", "each stream lost by itself", "only colour", "only depth"}
    table = {row["quantity"]: float(row["value"]) for row in rows if not row["method"]}
    assert table == report.facts and "accuracy, mean of combinations" in table
    assert (tmp_path / "run" / "evaluation.png").stat().st_size > 10_000
    assert run("report", tmp_path / "run", "--html", tmp_path / "page.html") == 0
    assert "each stream lost by itself" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_ends_at_the_same_bits(tmp_path, workers):
    words = ["--data.num-workers", workers]
    assert train(tmp_path / "whole", 8, *words) == 0
    assert train(tmp_path / "parts", 3, *words) == 0
    assert train(tmp_path / "parts", 8, *words, "--resume") == 0
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())


def test_what_is_recomputed_and_a_budget_change_no_bit(tmp_path, capsys):
    recompute = ["--system.recompute", "none", "--system.stem-slices", "0"]
    assert train(tmp_path / "plain", 3, *recompute) == 0
    assert train(tmp_path / "blocks", 3, "--system.recompute", "blocks") == 0
    capsys.readouterr()
    assert train(tmp_path / "budget", 3, "--memory.budget", "smallest") == 0
    assert "with all streams, predicted" in " ".join(capsys.readouterr().err.split())
    plain = weights(tmp_path / "plain")
    for other in ("blocks", "budget"):
        assert all(torch.equal(tensor, plain[name]) for name, tensor in weights(tmp_path / other).items())
    peaks = {name: from_json((tmp_path / name / "memory.json").read_text()).peak_bytes for name in ("plain", "budget")}
    assert peaks["budget"] < 0.95 * peaks["plain"]


def test_the_step_is_predicted_measured_planned_proven_and_audited(capsys):
    peaks = {}
    for kind in ("measured", "predicted"):
        words = ["--system.modality-dropout", "none", *(["--fake"] if kind == "predicted" else [])]
        assert run("measure", "linet", *SMALL, *words, "--json") == 0
        report = from_json(capsys.readouterr().out)
        assert isinstance(report, MemoryReport) and report.method == kind
        peaks[kind] = report.peak_bytes
    assert peaks["predicted"] == pytest.approx(peaks["measured"], rel=0.02)
    assert run("plan", "linet", *SMALL, "--memory.budget", "1GiB") == 0
    assert "nothing has to be done" in capsys.readouterr().out
    assert run("audit", "linet", *SMALL, "--json") == 0
    report = from_json(capsys.readouterr().out)
    assert isinstance(report, AuditReport) and report.findings == ()


def test_a_demo_in_small(tmp_path, capsys):
    words = [
        "--data.num-scenes",
        "32",
        "--data.num-test",
        "10",
        "--training.num-steps",
        "3",
        "--training.batch-size",
        "8",
    ]
    assert run("demo", "linet", "--out", tmp_path / "demo", *words, "--json") == 0
    records = json.loads(capsys.readouterr().out)
    table = from_json(json.dumps(records["table"]))
    assert isinstance(table, PeakTable) and table.rows[-1].name == "frostline, this run"
    peaks = {row.name: row.peak_bytes - row.resident_bytes for row in table.rows}
    assert peaks["frostline, this run"] < peaks["compact"] <= peaks["no-dropout"] < peaks["published-after"]
    assert {row.proof_class for row in table.rows} <= {"EXACT", "ROUNDING"}
    for name in ("evaluation.png", "peaks.png", "evaluation.csv", "config.yaml"):
        assert (tmp_path / "demo" / name).stat().st_size > 100
    assert run("report", tmp_path / "demo") == 0


def test_pictures_from_disk(tmp_path, capsys):
    for split in ("train", "test"):
        for number in range(8):
            for folder, mode in (("rgb", "RGB"), ("depth", "I;16")):
                file = tmp_path / "data" / split / folder / f"{number:05d}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                if folder == "rgb" or number % 4:
                    Image.new(mode, (40, 36), 255 * number).save(file)
        (tmp_path / "data" / split / "labels.txt").write_text("0 1 2 0 1 2 0 1")
    words = ["--data.kind", "folders", "--data.directory", tmp_path / "data"]
    assert train(tmp_path / "run", 2, *words) == 0
    assert "8 training samples of 3 classes" in " ".join(capsys.readouterr().err.split())
    assert run("evaluate", "linet", "--checkpoint", tmp_path / "run", "--json") == 0
    assert from_json(capsys.readouterr().out).facts["num_test_samples"] == 8
    assert train(tmp_path / "other", 2, *words, "--system.num-classes", 2) == 2
    assert "the data set has 3 classes, the network 2" in capsys.readouterr().err


def test_the_python_calls_take_a_configuration(tmp_path):
    config = LinetConfig(
        data=LinetDataConfig(num_scenes=16, num_test=4),
        training=LinetTrainingConfig(num_steps=2, batch_size=8),
        system=LinetSystemConfig(width_multiplier=0.125, modality_dropout="subsets", fill="learned"),
    )
    report = fl.train(config, out=tmp_path / "run")
    assert isinstance(report, RunReport) and report.system == "linet"
    assert 0 <= fl.evaluate(config, checkpoint=tmp_path / "run").facts["accuracy, mean of combinations"] <= 1


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--system.stream-channels", "3", "--system.stream-channels", "3"], "streams are colour and depth"),
        (["--data.kind", "sunrgbd"], "sunrgbd data has no place"),
        (["--system.modality-dropout-rate", "1.5"], "a modality dropout rate of 1.5"),
        (["--system.depth", "20"], "20"),
    ],
)
def test_words_that_make_no_run_are_one_error(tmp_path, capsys, words, text):
    assert train(tmp_path / "run", 2, *words) == 2
    err = capsys.readouterr().err
    assert text in err and "Traceback" not in err


def test_the_demonstrations_own_file_is_a_configuration(capsys):
    assert run("train", demo_file("linet"), "--print-config") == 0
    assert "name: linet" in capsys.readouterr().out
