"""Every verb on ti, from the command line to the files."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from frostline.cli.main import main
from frostline.config import load_config, read_yaml
from frostline.records import (
    AuditReport,
    EvaluationReport,
    MemoryReport,
    PeakTable,
    Plan,
    ProofReport,
    RunReport,
    from_json,
)
from frostline.systems.registry import demo_file
from frostline.systems.ti import phase, texts
from frostline.systems.ti.config import GenerateOptions, TiConfig
from frostline.systems.ti.files import load_concepts
from frostline.workflow import generate
from ti_parts import write_model

SMALL = """
name: ti
data: {{concept: [star, moon], num_pictures: 3}}
system:
  model: {model}
  concept: {{placeholder: [<a>, <b>]}}
  validation: {{every: 2, num_pictures: 1, num_judged: 1}}
training: {{num_steps: 4, batch_size: 6, learning_rate: 0.3, checkpoint_every: 2, log_every: 1}}
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ti")
    path = folder / "small.yaml"
    path.write_text(SMALL.format(model=write_model(folder / "model")))
    return path


@pytest.fixture(scope="module")
def trained(small):
    out = small.parent / "run"
    assert main(["train", str(small), "--out", str(out)]) == 0
    return out


def run(*words):
    return main([str(word) for word in words])


def record(capsys):
    return from_json(capsys.readouterr().out)


def vectors(path):
    return {concept.name: concept.vectors.detach() for concept in load_concepts(path)}


def test_a_run_writes_its_files(trained):
    files = {file.name: file for file in trained.iterdir()}
    assert files.keys() == {
        "concept.safetensors", "resume.pt", "config.yaml", "log.jsonl", "run.json", "memory.json", "audit.json",
        "samples",
    }  # fmt: skip
    assert files["concept.safetensors"].stat().st_size < 4096
    assert sorted(file.name for file in files["samples"].iterdir()) == [
        "step-000000.png", "step-000002.png", "step-000004.png",
    ]  # fmt: skip
    report = from_json(files["run.json"].read_text())
    assert isinstance(report, RunReport) and report.num_trainable == 2 * 32
    assert set(report.last[0].terms) == {"bits 1x1", "bits 2x2", "bits 4x4"}
    assert not from_json(files["audit.json"].read_text()).faults


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_ends_at_the_same_bits(small, tmp_path, workers):
    words = ("--training.schedule", "constant", "--data.num-workers", workers)
    assert run("train", small, "--out", tmp_path / "whole", *words) == 0
    assert run("train", small, "--out", tmp_path / "parts", *words, "--training.num-steps", 2) == 0
    assert run("train", small, "--out", tmp_path / "parts", *words, "--resume") == 0
    whole, parts = (vectors(tmp_path / name / "concept.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())


def test_generate_draws_a_file_s_concepts(small, trained, tmp_path, capsys):
    file = trained / "concept.safetensors"
    ask = ("generate", small, "--concept", file, "--prompt", "a red <a> on dark")
    assert run(*ask, "--out", tmp_path / "one.png") == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.size == (8, 8)
        first = picture.tobytes()
    for words, same in (
        ((), True),
        (("--seed", 0), True),
        (("--seed", 4), False),
        (("--cfg", 9), False),
        (("--negative", "a <b>"), False),
    ):
        assert run(*ask, *words, "--out", tmp_path / "again.png") == 0
        with Image.open(tmp_path / "again.png") as picture:
            assert (picture.tobytes() == first) is same, words
    assert run(*ask, "--prompt", "a <b>", "--num", 3, "--out", tmp_path / "sheet.png") == 0
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.size == (3 * 8 + 2 * 2, 2 * 8 + 2), "a row for each prompt"
    capsys.readouterr()
    assert (
        run("generate", "ti", "--checkpoint", trained, "--prompt", "a <b>", "--out", tmp_path / "folder", "--json") == 0
    )
    assert json.loads(capsys.readouterr().out)["files"] == [str(tmp_path / "folder" / "000.png")]
    config, asked = load_config(TiConfig, read_yaml(trained / "config.yaml")), GenerateOptions(prompt=("a <b>",))
    assert generate(config, checkpoint=trained, options=asked) == [trained / "generated.png"]


def test_evaluate_compares_with_the_carriers(trained, tmp_path, capsys):
    assert run("evaluate", "ti", "--checkpoint", trained, "--json") == 0
    report = record(capsys)
    assert isinstance(report, EvaluationReport)
    assert report.facts["prompts without a concept, pictures bit-identical"] == 1
    assert report.facts["saved and loaded concepts, pictures bit-identical"] == 1
    (curve,) = report.curves  # there is no judge for this model
    assert (report.x_name, curve.x) == ("scale", (1, 2, 3)) and all(value > 0 for value in curve.y)
    assert (trained / "concepts.png").exists() and (trained / "evaluation.csv").exists()


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--memory.checkpoint", "none"),
        ("--system.concept.space", "t5-input"),
        ("--training.precision", "bf16-mixed", "--memory.bfloat16-weights"),
    ],
)
def test_audit_is_silent_and_a_prediction_is_what_is_measured(small, capsys, words):
    assert run("audit", small, "--json", *words) == 0
    report = record(capsys)
    assert isinstance(report, AuditReport) and not report.findings
    peaks = []
    for fake in ((), ("--fake",)):
        assert run("measure", small, "--json", *words, *fake) == 0
        report = record(capsys)
        assert isinstance(report, MemoryReport)
        peaks.append(report.peak_bytes)
    assert peaks[1] == pytest.approx(peaks[0], rel=0.03)


def test_audit_finds_a_vector_that_no_optimizer_holds(small, monkeypatch, capsys):
    """Concepts are in the prompts, and an optimizer has the first of them alone."""
    plain = phase.concept_optimizer
    monkeypatch.setattr(
        phase, "concept_optimizer", lambda concepts, models, **keys: plain(concepts[:1], models, **keys)
    )
    assert run("audit", small, "--steps", 2, "--json") == 1
    report = record(capsys)
    assert any("<b>" in finding.what for finding in report.faults)
    assert run("train", small, "--out", Path(small).parent / "never") == 1
    assert "nothing was trained" in capsys.readouterr().err


@pytest.mark.parametrize("cut", [("<a>",), ("<a>", "<b>")])
def test_audit_finds_a_substitution_that_is_detached(small, monkeypatch, capsys, cut):
    whole = texts.substitute

    def detached(text, prompts, concepts):
        seen = [
            SimpleNamespace(name=concept.name, vectors=concept.vectors.detach()) if concept.name in cut else concept
            for concept in concepts
        ]
        return whole(text, prompts, seen)

    monkeypatch.setattr(texts, "substitute", detached)
    assert run("audit", small, "--json") == 1
    report = record(capsys)
    if len(cut) == 1:
        assert all("<a>" in str(finding) and "<b>" not in finding.what for finding in report.faults)
    assert any("test_ti_cli.py" in str(finding) for finding in report.faults), "the line that cuts is named"


def test_plan_and_prove(small, tmp_path, capsys):
    assert run("plan", small, "--memory.budget", "smallest", "--out", tmp_path / "plan.json", "--json") == 0
    plan = record(capsys)
    assert isinstance(plan, Plan) and plan.predicted_peak_bytes < plan.baseline_peak_bytes
    for words in (("--plan", tmp_path / "plan.json"), (), ("--memory.budget", "smallest")):
        assert run("prove", small, *words, "--json") == 0
        report = record(capsys)
        assert isinstance(report, ProofReport) and report.proof_class == "EXACT"
    assert run("plan", small, "--memory.budget", "1KiB") == 1
    assert "no plan fits 1KiB" in capsys.readouterr().err
    assert run("train", small, "--memory.budget", "smallest", "--out", tmp_path / "run") == 0
    assert "checkpointed blocks" in capsys.readouterr().err


def test_a_published_model_is_planned_by_its_name(tmp_path, capsys):
    words = ("--system.model", "infinity-125m", "--system.pixels", "0.06M", "--training.batch-size", 1)
    assert run("measure", "ti", "--fake", *words, "--json") == 0
    assert record(capsys).peak_bytes > 5e8
    assert run("train", "ti", *words, "--out", tmp_path / "never") == 2
    assert "no such directory" in capsys.readouterr().err


def test_refusals(small, trained, tmp_path, capsys):
    file = trained / "concept.safetensors"
    requests = {
        ("generate", small): "there is nothing to draw",
        ("generate", small, "--prompt", "a <c>", "--concept", file): "no concept is named <c>",
        ("generate", "ti", "--prompt", "a <a>", "--concept", file): "the concepts were trained for the base model",
        ("generate", small, "--prompt", "a <a>", "--concept", tmp_path / "none"): "the file cannot be read",
        ("generate", "graf", "--prompt", "a <a>"): "--prompt",
        ("train", small, "--memory.frozen-dtype", "bfloat16"): "ti does not read memory.frozen_dtype",
        ("train", small, "--data.path", "cats"): "add --data.kind folders",
        ("train", small, "--data.kind", "folders"): "0 of --data.path for 2 placeholders",
        ("train", small, "--system.concept.placehoder", "<x>"): "placehoder",
        ("evaluate", small): "give --checkpoint RUN",
    }
    for words, said in requests.items():
        out = ("--out", tmp_path / "out") if words[0] == "train" else ()
        assert run(*words, *out) == 2, words
        assert said in " ".join(capsys.readouterr().err.split()), words


def test_help_lists_the_keys_and_what_generate_is_told(capsys):
    assert run("generate", "ti", "--help") == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("--prompt", "--negative", "--cfg", "--system.concept.carrier"))
    assert run("train", "ti", "--help") == 0
    assert "--negative" not in capsys.readouterr().out


def test_the_byte_table_of_a_run(small):
    from frostline.systems.ti.verbs import peak_table

    table = peak_table(load_config(TiConfig, read_yaml(small)))
    assert isinstance(table, PeakTable)
    rows = {row.name: row for row in table.rows}
    assert rows["frostline, this run"].peak_bytes < rows["trainable"].peak_bytes
    assert rows["frostline, this run"].proof_class == "EXACT"
    assert demo_file("ti").exists()
