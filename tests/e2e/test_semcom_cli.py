"""Every verb on semcom, from the command line to the files."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import frostline as fl
from frostline.cli.main import main
from frostline.errors import ConfigError
from frostline.records import MemoryReport, RunReport, StepRecord, from_json
from frostline.systems.registry import demo_file
from frostline.systems.semcom import SemcomConfig
from frostline.systems.semcom.config import SemcomDataConfig, SemcomTrainingConfig

SMALL = ["--data.num-scenes", "32", "--data.num-test", "20", "--training.batch-size", "8", "--training.log-every", "2"]
STEADY = [*SMALL, "--training.schedule", "constant", "--training.warmup-steps", "2"]


def run(*words: object) -> int:
    return main([str(word) for word in words])


def train(out: Path, num_steps: int, *words: object) -> int:
    return run("train", "semcom", "--out", out, "--training.num-steps", num_steps, *STEADY, *words)


def test_train_writes_checkpoint_configuration_log_and_record(tmp_path, capsys):
    assert train(tmp_path / "run", 4) == 0
    out, err = capsys.readouterr()
    assert "done after 4 steps" in out
    for part in ("vision_tower", "image_proj_norm", "language_model", "tokenizer", "compression"):
        assert part in err
    assert "one step peaks at" in err
    files = {file.name: file.stat().st_size for file in (tmp_path / "run").iterdir()}
    assert set(files) == {
        "codec.safetensors",
        "resume.pt",
        "config.yaml",
        "log.jsonl",
        "run.json",
        "memory.json",
        "audit.json",
    }
    assert files["codec.safetensors"] < 400_000, "the checkpoint holds the codec alone"
    steps = [from_json(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [step.step for step in steps if isinstance(step, StepRecord)] == [2, 4]
    report = from_json((tmp_path / "run" / "run.json").read_text())
    assert isinstance(report, RunReport)
    assert report.num_steps == 4
    assert report.last[0].peak_bytes == from_json((tmp_path / "run" / "memory.json").read_text()).peak_bytes


def test_json_is_all_that_goes_to_standard_output(tmp_path, capsys):
    assert train(tmp_path / "run", 2, "--json") == 0
    assert isinstance(from_json(capsys.readouterr().out), RunReport)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache", ["none", "disk"])
def test_a_resumed_run_ends_at_the_same_bits(tmp_path, cache, workers):
    words = ["--memory.feature-cache", cache, "--data.num-workers", workers]
    assert train(tmp_path / "whole", 6, *words) == 0
    assert train(tmp_path / "parts", 3, *words) == 0
    assert train(tmp_path / "parts", 6, *words, "--resume") == 0
    whole, parts = (load_file(tmp_path / name / "codec.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name


def test_cached_features_train_the_same_codec(tmp_path):
    chunk = ["--memory.upstream-chunk", 1]  # the same picture in the same batch of one: bitwise the same features
    assert train(tmp_path / "cached", 4, *chunk, "--memory.feature-cache", "memory") == 0
    assert train(tmp_path / "computed", 4, *chunk) == 0
    cached, computed = (load_file(tmp_path / name / "codec.safetensors") for name in ("cached", "computed"))
    assert all(torch.equal(cached[name], computed[name]) for name in computed)


def test_a_second_run_never_overwrites_the_first(tmp_path, capsys):
    assert train(tmp_path / "run", 1) == 0
    before = (tmp_path / "run" / "codec.safetensors").read_bytes()
    assert train(tmp_path / "run", 1) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert (tmp_path / "run" / "codec.safetensors").read_bytes() == before


def test_resuming_with_another_configuration_names_what_changed(tmp_path, capsys):
    assert train(tmp_path / "run", 1) == 0
    assert train(tmp_path / "run", 2, "--resume", "--system.channel", "rayleigh") == 2
    assert "system.channel was 'awgn', is 'rayleigh'" in capsys.readouterr().err


def test_a_missing_checkpoint_is_an_error_and_no_fresh_run(tmp_path, capsys):
    assert train(tmp_path / "none", 1, "--resume") == 2
    assert run("evaluate", "semcom", "--checkpoint", tmp_path / "none", *SMALL) == 2
    assert run("evaluate", "semcom", *SMALL) == 2
    err = capsys.readouterr().err
    assert err.count("none") >= 2
    assert "give --checkpoint RUN" in err
    assert not (tmp_path / "none").exists()


def test_a_finished_run_is_left_alone(tmp_path, capsys):
    assert train(tmp_path / "run", 2) == 0
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    for num_steps in (1, 2):
        assert train(tmp_path / "run", num_steps, "--resume") == 2
        assert "the run has 2 steps already" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before


def test_a_file_where_a_directory_should_be_is_an_error(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run("evaluate", "semcom", "--checkpoint", tmp_path / "file", *SMALL) == 2
    assert run("evaluate", "semcom", "--system.codec", "none", "--out", tmp_path / "file", *SMALL) == 2
    assert train(tmp_path / "file", 1) == 2
    cache = ["--memory.feature-cache", "disk", "--memory.feature-cache-directory", tmp_path / "file" / "below"]
    assert train(tmp_path / "run", 1, *cache) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_the_python_calls_take_a_configuration_and_text_paths(tmp_path):
    data, training = SemcomDataConfig(num_scenes=16, num_test=4), SemcomTrainingConfig(num_steps=2, batch_size=4)
    config = SemcomConfig(data=data, training=training)
    assert fl.train(config, out=str(tmp_path / "run")).num_steps == 2
    assert fl.evaluate(config, checkpoint=str(tmp_path / "run")).facts["channel_uses"] == 64
    with pytest.raises(ConfigError, match="'semcom' is not a configuration"):
        fl.train("semcom", out=tmp_path / "other")


def test_ctrl_c_saves_first_and_the_run_goes_on_from_there(tmp_path):
    words = ["train", "semcom", "--out", "run", "--training.num-steps", "100000", *STEADY]
    child = subprocess.Popen(
        [sys.executable, "-m", "frostline", *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    log = tmp_path / "run" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") >= 2) and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 130
    assert b"interrupted, saved" in out
    report = from_json((tmp_path / "run" / "run.json").read_text())
    assert isinstance(report, RunReport)
    assert report.interrupted
    assert train(tmp_path / "run", report.num_steps + 1, "--resume") == 0


@pytest.mark.parametrize("words", [(), ("--training.gradient-accumulation-steps", "2")])
def test_two_processes_train_the_same_codec_as_one(tmp_path, words):
    words = (*words, "--training.learning-rate", "1e-3")  # AdamW turns rounding into steps of this size
    assert train(tmp_path / "one", 5, *words) == 0
    names = ["MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = (
        "import os, sys\nfrom frostline.cli.main import main\n"
        "code = main(sys.argv[1:])\nsys.stdout.flush(); sys.stderr.flush()\nos._exit(code)\n"
    )
    command = ["train", "semcom", "--out", str(tmp_path / "two"), "--training.num-steps", "5", *STEADY, *words]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", script, *command],
            env={
                **os.environ,
                **dict(zip(names, ("127.0.0.1", str(port), "2"), strict=True)),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "OMP_NUM_THREADS": "1",
            },
            stderr=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    said = [child.communicate(timeout=180)[0] for child in children]
    assert b"done after 5 steps" in said[0]
    assert said[1] == b"", "one process speaks for both"
    one, two = (load_file(tmp_path / name / "codec.safetensors") for name in ("one", "two"))
    assert max((one[name] - two[name]).abs().max().item() for name in one) <= 1e-6
    report = from_json((tmp_path / "two" / "run.json").read_text())
    assert isinstance(report, RunReport)
    assert report.num_steps == 5


def test_measure_and_its_prediction_agree_to_the_byte(tmp_path, capsys):
    words = ["--training.batch-size", "4", "--data.num-scenes", "16", "--json"]
    assert run("measure", "semcom", *words) == 0
    measured = from_json(capsys.readouterr().out)
    assert isinstance(measured, MemoryReport)
    assert measured.method == "measured"
    assert sum(measured.by_category.values()) == measured.peak_bytes
    assert measured.peak_bytes >= measured.resident_bytes > 0
    assert run("measure", "semcom", "--fake", *words) == 0
    predicted = from_json(capsys.readouterr().out)
    assert isinstance(predicted, MemoryReport)
    assert predicted.method == "predicted"
    assert abs(predicted.resident_bytes - measured.resident_bytes) < 4096, "they differ by the answers' length alone"


def test_evaluate_writes_curves_a_table_and_a_picture(tmp_path, capsys):
    assert train(tmp_path / "run", 2) == 0
    capsys.readouterr()
    assert run("evaluate", tmp_path / "run" / "config.yaml", "--checkpoint", tmp_path / "run", "--json") == 0
    report = from_json(capsys.readouterr().out)
    assert report.facts["channel_uses"] == 64
    with (tmp_path / "run" / "evaluation.csv").open() as file:
        rows = list(csv.DictReader(file))
    methods = {row["method"] for row in rows}
    assert "trained codec" in methods
    assert any(name.startswith("raw features") for name in methods)
    points = [row["Es/N0 in dB"] for row in rows if row["method"]]
    assert {float(point) for point in points} == {-6.0, -3.0, 0.0, 3.0, 6.0, 10.0, 15.0}
    with Image.open(tmp_path / "run" / "evaluation.png") as picture:
        assert picture.size[0] > 800


def test_a_run_is_evaluated_by_its_own_configuration(tmp_path, capsys):
    words = ["--data.task", "both", "--system.channel", "rayleigh", "--system.mode", "image_proj_norm"]
    assert train(tmp_path / "run", 1, *words) == 0
    assert run("evaluate", "semcom", "--checkpoint", tmp_path / "run", "--data.num-test", "7") == 0
    assert "Captions and detections of 7 unseen scenes, rayleigh channel" in capsys.readouterr().out
    report = from_json((tmp_path / "run" / "evaluation.json").read_text())
    assert report.facts["channel_uses"] == 4 * 17


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16-mixed", "float32"), ("16-mixed", "float32"), ("bf16-mixed", "bfloat16")]
)
def test_other_precisions_train(precision, dtype, tmp_path):
    words = ["--training.precision", precision, "--memory.frozen-dtype", dtype]
    assert train(tmp_path / "run", 3, *words) == 0
    report = from_json((tmp_path / "run" / "run.json").read_text())
    assert 0 < report.last[0].loss < 12
    assert report.last[0].gradient_norm > 0


def test_without_a_codec_the_frozen_model_is_monitored(tmp_path, capsys):
    words = ["--system.codec", "none", "--system.channel", "noiseless", *SMALL]
    assert run("train", "semcom", "--out", tmp_path / "run", *words) == 2
    assert "0 trainable parameters" in capsys.readouterr().err
    assert run("evaluate", "semcom", "--out", tmp_path / "monitor", *words) == 0
    out, err = capsys.readouterr()
    assert "no codec, 0 trainable parameters" in err
    assert "raw features" in out
    report = from_json((tmp_path / "monitor" / "evaluation.json").read_text())
    assert report.curves[0].y[0] >= 0.95, "without noise the frozen model answers as if there were no channel"


@pytest.mark.parametrize("mode", ["vision_tower", "image_proj_norm"])
def test_the_demo_shows_bytes_accuracy_and_pictures(mode, tmp_path, capsys):
    words = ["--training.num-steps", "6", *SMALL, "--system.mode", mode]
    assert run("demo", "semcom", "--out", tmp_path / "demo", *words) == 0
    out, _ = capsys.readouterr()
    for text in ("unfrozen", "published-advice", "frostline, this run", "trained codec", "send the answer", "PCA"):
        assert text in out
    files = {file.name for file in (tmp_path / "demo").iterdir()}
    assert {"evaluation.csv", "evaluation.png", "peaks.png", "config.yaml", "codec.safetensors"} <= files
    table = from_json((tmp_path / "demo" / "table.json").read_text())
    rows = {row.name: row for row in table.rows}
    assert rows["frostline, this run"].peak_bytes < rows["frozen"].peak_bytes < rows["unfrozen"].peak_bytes
    assert rows["frostline, this run"].proof_class in ("EXACT", "ROUNDING")
    measured = from_json((tmp_path / "demo" / "memory.json").read_text())
    assert abs(rows["frostline, this run"].peak_bytes - measured.peak_bytes) <= 0.02 * measured.peak_bytes


def test_the_demo_file_is_a_configuration_to_copy(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(demo_file("semcom").read_text())
    assert run("train", tmp_path / "mine.yaml", "--print-config") == 0
    (tmp_path / "resolved.yaml").write_text(first := capsys.readouterr().out)
    assert run("train", tmp_path / "resolved.yaml", "--print-config") == 0
    assert capsys.readouterr().out == first


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], 'Unknown command "trian"'),
        (["train"], "requires an argument"),
        (["train", "semcon"], "no system 'semcon'"),
        (["train", "missing.yaml"], "cannot read the configuration"),
        (["train", "semcom", "--training.num-step", "3"], "Did you mean --training.num-steps?"),
        (["train", "semcom", "--training.num-steps", "1.5"], "'1.5' is not a whole number"),
        (["train", "semcom", "--training.batch-size", "0"], "Must be >= 1"),
        (["train", "semcom", "--data.kind", "video"], 'Choose from: "scenes", "coco"'),
        (["train", "semcom", "--system.model", "no/where"], "cannot load a Florence-2 from 'no/where'"),
        (["train", "semcom", "--system.model", "./nowhere"], "no such directory"),
        (["train", "semcom", "--system.snr-min-db", "20"], "no SNR lies between 20.0 and 15.0 dB"),
        (
            ["train", "semcom", "--training.precision", "16-mixed", "--memory.frozen-dtype", "bfloat16"],
            "bfloat16 weights cannot run under float16 autocast",
        ),
        (["train", "semcom", "--data.num-workers", "5"], "more than 4 seldom load faster"),
        (["train", "semcom", "--data.kind", "coco"], "give --data.images DIR --data.captions FILE"),
        (["train", "semcom", "--device", "cuda"], "there is no GPU that torch can use"),
        (["measure", "semcom", "--fake", "--system.codec", "none"], "0 trainable parameters"),
        (["measure", "semcom", "--system.codec", "none"], "0 trainable parameters"),
        (["measure", "semcom", "--fake", "--system.model", "no/where"], "the shapes of 'no/where' are not known"),
        (["demo", "graph"], "no system 'graph'"),
    ],
)
def test_a_request_that_cannot_be_carried_out_says_why_and_exits_with_2(words, message, capsys, monkeypatch, tmp_path):
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("*.pt"))


def draw_pictures(folder: Path) -> list[str]:
    """Four small photographs of nothing in particular, and what they are said to show."""
    captions = ["Two dogs, asleep.", "A jazz quartet at 9 o'clock!", "the café's blue door", "Zebra & quilt"]
    (folder / "images").mkdir(parents=True)
    for number in range(len(captions)):
        pixels = torch.randint(0, 256, (9, 7, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        picture = Image.fromarray(pixels.numpy()).resize((70, 90))
        picture.save(folder / "images" / f"{number}.jpg")
    listed = [{"id": n, "file_name": f"{n}.jpg"} for n in range(len(captions))]
    said = [{"id": n, "image_id": n, "caption": caption} for n, caption in enumerate(captions)]
    (folder / "captions.json").write_text(json.dumps({"images": listed, "annotations": said}))
    return captions


@pytest.mark.parametrize("photographs", ["drawn", "shared"])
def test_the_codec_overfits_photographs(photographs, tmp_path, capsys):
    folder = Path(__file__).parents[3] / "shared" / "data" / "photos"
    if photographs == "drawn":
        draw_pictures(folder := tmp_path)
    elif not folder.is_dir():
        pytest.skip("the five photographs are not part of the repository")
    words = ["--data.kind", "coco", "--data.images", folder / "images", "--data.captions", folder / "captions.json"]
    words += ["--memory.feature-cache", "memory", "--system.snr-min-db", "10"]
    assert run("train", "semcom", "--out", tmp_path / "run", "--training.num-steps", "300", *words) == 0
    report = from_json((tmp_path / "run" / "run.json").read_text())
    assert report.last[0].loss <= report.first[0].loss / 5
    assert run("evaluate", "semcom", "--checkpoint", tmp_path / "run", *words) == 0
    evaluation = from_json((tmp_path / "run" / "evaluation.json").read_text())
    tokens = next(c for c in evaluation.curves if c.name == "trained codec" and c.y_name == "token accuracy")
    assert tokens.y[-1] >= 0.8
    assert evaluation.facts["chrf_at_10_db"] > 30
    assert "token accuracy" in capsys.readouterr().out


def test_a_picture_with_several_captions_is_described_once(tmp_path, capsys):
    captions = draw_pictures(tmp_path)
    document = json.loads((tmp_path / "captions.json").read_text())
    document["annotations"] += [{"id": 9, "image_id": 0, "caption": "Dogs sleeping."}]
    (tmp_path / "captions.json").write_text(json.dumps(document))
    words = ["--data.kind", "coco", "--data.images", tmp_path / "images", "--data.captions", tmp_path / "captions.json"]
    assert run("evaluate", "semcom", "--system.codec", "none", "--out", tmp_path / "seen", *words) == 0
    report = from_json((tmp_path / "seen" / "evaluation.json").read_text())
    assert report.facts["num_test_pictures"] == len(captions)
    assert {"bleu_at_10_db", "chrf_at_10_db"} <= set(report.facts)
    test = ["--data.test-captions", tmp_path / "one.json"]
    document["annotations"] = document["annotations"][:1]
    (tmp_path / "one.json").write_text(json.dumps(document))
    assert run("evaluate", "semcom", "--system.codec", "none", *words, *test) == 0
    assert "1 test pictures" in capsys.readouterr().out


def test_an_answer_longer_than_the_decoder_is_named(tmp_path, capsys):
    draw_pictures(tmp_path)
    document = json.loads((tmp_path / "captions.json").read_text())
    document["annotations"][0]["caption"] = "qx" * 80
    (tmp_path / "captions.json").write_text(json.dumps(document))
    words = ["--data.kind", "coco", "--data.images", tmp_path / "images", "--data.captions", tmp_path / "captions.json"]
    assert run("train", "semcom", "--out", tmp_path / "run", *words) == 2
    err = capsys.readouterr().err
    assert "the model has room for 128" in err
    assert "qxqx" in err
