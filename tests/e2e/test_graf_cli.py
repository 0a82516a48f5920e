"""Every verb on graf, from the command line to the files."""

import json

import pytest
from PIL import Image

from frostline.cli.main import main
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

pytest.importorskip("torchmetrics")

TINY = """
name: graf
data: {num_images: 16, num_test: 8}
system:
  camera: {image_size: 8}
  field: {depth: 2, width: 16, skip_layer: 0, point_frequencies: 2, direction_frequencies: 0, latent_size: 4,
    class_size: 4, mapping_width: 8}
  rendering: {num_samples: 4, chunk_rays: 128}
  ccsr: {latent_size: 4, width: 4, num_views: 4}
  discriminator: {channels: 4, max_channels: 8, r1_every: 2}
  metrics: {every: 2, num_images: 8, feature_steps: 3}
  samples: {every: 2, num_samples: 4, num_views: 4, num_frames: 3}
training: {num_steps: 2, batch_size: 4, checkpoint_every: 2, log_every: 1}
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("graf") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def trained(tiny):
    out = tiny.parent / "run"
    assert main(["train", str(tiny), "--out", str(out)]) == 0
    return out


def run(*words):
    return main([str(word) for word in words])


def record(capsys):
    return from_json(capsys.readouterr().out)


def test_a_run_writes_its_files(trained):
    names = {"gan.safetensors", "resume.pt", "config.yaml", "log.jsonl", "run.json", "memory.json", "audit.json"}
    assert names | {"best", "samples", "scores.jsonl"} <= {file.name for file in trained.iterdir()}
    report = from_json((trained / "run.json").read_text())
    assert isinstance(report, RunReport) and [phase.phase for phase in report.last] == ["discriminator", "generator"]
    assert not from_json((trained / "audit.json").read_text()).faults


def test_evaluate_and_generate(trained, tmp_path, capsys):
    assert run("evaluate", "graf", "--checkpoint", trained, "--out", tmp_path, "--json") == 0
    report = record(capsys)
    assert isinstance(report, EvaluationReport) and "KID before the first step" in report.facts
    assert {curve.name for curve in report.curves} == {"KID", "FID", "class found"}
    assert (tmp_path / "evaluation.png").exists() and (trained / "turntable.png").exists()
    best = trained / "best"
    assert run("evaluate", "graf", "--checkpoint", best, "--json") == 0
    assert len(record(capsys).curves) == 3 and (best / "evaluation.png").exists()
    assert run("generate", "graf", "--checkpoint", best, "--out", tmp_path / "films", "--json") == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert [file.rpartition("/")[2] for file in files] == ["views.png", "turntable.gif", "turntable-depth.gif"]
    with Image.open(files[0]) as views:
        assert views.size == (4 * 16, 3 * 4 * 16)
    with Image.open(files[1]) as film:
        assert film.n_frames == 3


def test_audit_and_measure(tiny, capsys):
    assert run("audit", tiny, "--json") == 0
    report = record(capsys)
    assert isinstance(report, AuditReport) and not report.faults
    peaks = []
    for words in ((), ("--fake",)):
        assert run("measure", tiny, "--json", *words) == 0
        report = record(capsys)
        assert isinstance(report, MemoryReport)
        peaks.append(report.peak_bytes)
    assert peaks[1] == pytest.approx(peaks[0], rel=0.02)


def test_plan_and_prove(tiny, tmp_path, capsys):
    assert run("plan", tiny, "--memory.budget", "smallest", "--out", tmp_path / "plan.json", "--json") == 0
    plan = record(capsys)
    assert isinstance(plan, Plan) and plan.treated[0].arguments == {"rays": 64}  # fewer save nothing
    assert plan.predicted_peak_bytes < plan.baseline_peak_bytes
    assert run("prove", tiny, "--plan", tmp_path / "plan.json", "--json") == 0
    report = record(capsys)
    assert isinstance(report, ProofReport) and report.proof_class in ("EXACT", "ROUNDING")
    assert run("plan", tiny, "--memory.budget", "1KiB") == 1
    assert "no plan fits 1KiB" in capsys.readouterr().err


def test_a_run_with_a_budget_keeps_the_plan_it_was_built_by(tiny, tmp_path, capsys):
    assert run("train", tiny, "--memory.budget", "smallest", "--out", tmp_path / "run") == 0
    plan, measured = (from_json((tmp_path / "run" / name).read_text()) for name in ("plan.json", "memory.json"))
    assert plan.treated[0].arguments == {"rays": 64} and "rays at once" in capsys.readouterr().err
    assert measured.peak_bytes <= 1.02 * plan.predicted_peak_bytes < plan.baseline_peak_bytes


def test_refusals(tiny, trained, tmp_path, capsys):
    requests = {
        ("train", tiny, "--system.rays.sampler", "patch"): "super-resolution works on whole images",
        ("train", tiny, "--system.rays.sampler", "patch", "--system.rays.num-rays", "1000",
            "--system.ccsr.no-enabled"): "961 (31 x 31) or 1024 (32 x 32)",
        ("train", tiny, "--memory.checkpoint", "none"): "graf has no frozen part",
        ("train", tiny, "--system.field.dept", "3"): "dept",
        ("generate", tiny): "no run was named",
        ("generate", "semcom", "--checkpoint", trained): "is of 'graf', not of 'semcom'",
        ("train", "linet", "--from-original", tiny): "linet reads no published configuration",
    }  # fmt: skip
    for words, said in requests.items():
        out = ("--out", tmp_path / "none") if words[0] == "train" else ()
        assert run(*words, *out) == 2, words
        assert said in " ".join(capsys.readouterr().err.split()), words


def test_a_published_configuration_is_printed_and_loads_again(tmp_path, capsys):
    (tmp_path / "original.yaml").write_text("data: {imsize: 64}\ntraining: {batch_size: 3, outdir: x}")
    assert run("train", "graf", "--from-original", tmp_path / "original.yaml", "--print-config") == 0
    text = capsys.readouterr().out
    assert text.startswith("# training.outdir is left out: give --out\n")
    (tmp_path / "ours.yaml").write_text(text)
    assert run("train", tmp_path / "ours.yaml", "--print-config") == 0
    assert "batch_size: 3" in capsys.readouterr().out


def test_the_byte_table_of_a_run(tiny):
    from frostline.config import load_config, read_yaml
    from frostline.systems.graf.config import GrafConfig
    from frostline.systems.graf.verbs import peak_table

    table = peak_table(load_config(GrafConfig, read_yaml(tiny)))
    assert isinstance(table, PeakTable)
    rows = {row.name: row for row in table.rows}
    assert rows["frostline, this run"].peak_bytes < rows["naive"].peak_bytes
    assert rows["frostline, this run"].proof_class in ("EXACT", "ROUNDING")
    assert rows["published-advice"].trains != "everything"
    assert demo_file("graf").exists()


def test_the_byte_table_follows_the_configuration(tiny):
    from frostline.config import load_config, read_yaml
    from frostline.systems.graf.config import GrafConfig
    from frostline.systems.graf.verbs import peak_table, plan

    words = ["--system.ccsr.enabled=false", "--system.rendering.chunk-rays=0", "--memory.budget=smallest"]
    config = load_config(GrafConfig, read_yaml(tiny), words)
    rows = {row.name: row for row in peak_table(config).rows}
    assert "published-advice" not in rows  # there is no super-resolution to cut
    assert plan(config).treated and rows["frostline, this run"].peak_bytes < rows["naive"].peak_bytes
