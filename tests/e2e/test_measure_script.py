"""`frostline measure` on scripts that know nothing of it."""

import json
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from torch.cuda import _memory_viz

from frostline.cli.main import main
from frostline.records import MemoryReport, from_json

HEAD = """
import sys
import torch
from torch import nn
torch.manual_seed(0)
def mlp(width=256):
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 64))
"""
LOOP = """
model, x = mlp(), torch.randn(128, 64)
optimizer = torch.optim.AdamW(model.parameters())
for i in range(100):
    optimizer.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    optimizer.step()
    print("step", i)
"""
WEIGHTS = 4 * (64 * 256 + 256 + 256 * 64 + 64)


def write(folder: Path, text: str, name: str = "train.py") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEAD + textwrap.dedent(text))
    return path


def run(*words: object) -> int:
    return main([str(word) for word in words])


def measured(capsys, path: Path, *words: object, code: int = 0) -> tuple[MemoryReport, str]:
    """The report, all that went to standard output being its JSON; and what went to standard error."""
    assert run("measure", path, "--json", *words) == code
    out, err = capsys.readouterr()
    report = from_json(out)
    assert isinstance(report, MemoryReport)
    assert sum(report.by_category.values()) == report.peak_bytes == sum(report.by_line.values())
    return report, err


def test_a_plain_loop_is_stopped_after_its_second_step(tmp_path, capsys):
    report, err = measured(capsys, write(tmp_path, LOOP))
    assert [line for line in err.splitlines() if line] == ["step 0", "step 1"]
    assert report.covers == "training step 2"
    assert report.by_category["parameters"] == WEIGHTS
    assert 0 < report.by_category["gradients"] <= WEIGHTS
    assert report.by_category["optimizer state"] == 2 * WEIGHTS + 4 * 4
    assert report.by_category["inputs"] == 128 * 64 * 4
    assert "model.1" in report.by_module or "backward" in report.by_module
    assert set(report.by_line) <= {f"train.py:{n}" for n in range(1, 20)}
    assert any("kernel" in what for what in report.not_seen) and any("loader" in what for what in report.not_seen)


def test_the_page_shows_what_a_person_asks(tmp_path, capsys):
    assert run("measure", write(tmp_path, LOOP), "--steps", "3") == 0
    out = capsys.readouterr().out
    assert out.index("step 2") < out.index("measured peak")
    assert "step 3\n" not in out
    for text in (
        "training steps 2 to 3",
        "optimizer state",
        "by frozen parts",
        "train.py:",
        "by your line",
        "not seen",
    ):
        assert text in out


def test_a_gan_is_measured_in_both_phases(tmp_path, capsys):
    text = """
    G, D = mlp(), mlp(512)
    optimizer_G = torch.optim.Adam(G.parameters())
    optimizer_D = torch.optim.Adam(D.parameters())
    bce = nn.BCEWithLogitsLoss()
    for i in range(50):
        optimizer_D.zero_grad()
        fake = G(torch.randn(512, 64))
        real_loss = bce(D(torch.randn(512, 64)), torch.ones(512, 64))
        fake_loss = bce(D(fake.detach()), torch.zeros(512, 64))
        (real_loss + fake_loss).backward()
        optimizer_D.step()
        optimizer_G.zero_grad()
        bce(D(fake), torch.ones(512, 64)).backward()
        optimizer_G.step()
        print("round", i)
    """
    report, err = measured(capsys, write(tmp_path, text))
    assert "round 1" in err and "round 2" not in err
    assert report.covers == "training steps 3 to 4"
    both = WEIGHTS + 4 * (64 * 512 + 512 + 512 * 64 + 64)
    assert report.by_category["parameters"] == both
    assert report.by_category["optimizer state"] == 2 * both + 8 * 4
    assert {name.partition(".")[0] for name in report.by_module} >= {"G", "D"}


def test_accumulated_micro_batches_are_one_step(tmp_path, capsys):
    text = """
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for i in range(40):
        loss = model(torch.randn(512, 64)).square().mean() / 4
        loss.backward()
        print("batch", i)
        if i % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
    """
    report, err = measured(capsys, write(tmp_path, text))
    assert "batch 7" in err and "batch 8" not in err
    assert report.by_category["optimizer state"] == WEIGHTS
    assert report.by_category["saved for backward"] >= 512 * 256 * 4


def test_arguments_go_to_the_script(tmp_path, capsys):
    text = """
    import argparse
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("rest", nargs="*")
    options = parser.parse_args()
    print(options)
    net = mlp(options.width)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(options.steps):
        net(torch.randn(4, 64)).sum().backward()
        optimizer.step()
    """
    path = write(tmp_path, text)
    report, err = measured(capsys, path, "--steps", 4, "--", "--width", 32, "--steps", 3, "--json", "a", "--", "-b")
    assert "Namespace(width=32, steps=3, json=True, rest=['a', '-b'])" in err
    assert report.by_category["parameters"] == 4 * (64 * 32 + 32 + 32 * 64 + 64)
    assert report.covers == "training steps 2 to 3"
    assert run("measure", path, "--", "--width", "wide") == 2
    err = capsys.readouterr().err
    assert "invalid int value: 'wide'" in err
    assert "frostline: the script exited with exit code 2" in err


def test_a_script_that_raises_shows_its_traceback_and_what_was_measured(tmp_path, capsys):
    text = LOOP.replace('print("step", i)', "assert i < 2, 'diverged'")
    path = write(tmp_path, text)
    report, err = measured(capsys, path, "--steps", 9, code=2)
    assert report.covers == "training steps 2 to 3 and what failed after step 3"
    assert "AssertionError: diverged" in err and f'File "{path}", line ' in err
    assert "frostline/" not in err
    assert err.endswith("frostline: the script failed with exit code 1; measured until then\n")


def test_an_error_inside_an_operator_is_told_without_our_frames(tmp_path, capsys):
    path = write(tmp_path, "mlp()(torch.randn(2, 63))\n")
    plain = subprocess.run([sys.executable, path], capture_output=True, text=True, check=False).stderr
    _, err = measured(capsys, path, code=2)
    assert "mat1 and mat2 shapes cannot be multiplied" in err and "memtrace" not in err
    assert err.splitlines()[:3] == plain.splitlines()[:3]


def test_gradients_of_torch_func_are_named_as_what_cannot_be_measured(tmp_path, capsys):
    _, err = measured(capsys, write(tmp_path, "torch.func.grad(lambda x: x.sin().sum())(torch.ones(3))\n"), code=2)
    assert "gradients of torch.func cannot be measured" in err.splitlines()[-1]


@pytest.mark.parametrize(("status", "code"), [("3", 2), ("0", 0), ("", 0)])
def test_a_script_that_exits(status, code, tmp_path, capsys):
    report, err = measured(capsys, write(tmp_path, f"kept = torch.ones(1000)\nsys.exit({status})\n"), code=code)
    assert report.covers == "the whole run: no training step ended"
    assert report.peak_bytes == 4000
    assert ("exited with exit code 3" in err) == (status == "3")


def test_a_script_that_trains_nothing_is_measured_as_a_whole(tmp_path, capsys):
    text = "with torch.no_grad():\n    y = mlp()(torch.randn(4096, 64))\nprint(y.shape)\n"
    report, err = measured(capsys, write(tmp_path, text))
    assert "torch.Size([4096, 64])" in err
    assert report.covers == "the whole run: no training step ended"
    assert report.by_category["parameters"] == WEIGHTS
    assert report.peak_bytes == pytest.approx(WEIGHTS + 4 * 4096 * (64 + 2 * 256), rel=0.2)


def test_ctrl_c_is_no_result(tmp_path, capsys):
    assert run("measure", write(tmp_path, "raise KeyboardInterrupt\n")) == 130
    assert "measured peak" not in capsys.readouterr().out


def test_neighbours_are_imported_and_a_module_runs(tmp_path, capsys, monkeypatch):
    write(tmp_path / "work", "def width():\n    return 32\n", "sizes.py")
    write(tmp_path / "work", "from sizes import width\n" + LOOP.replace("mlp()", "mlp(width())"))
    write(tmp_path, "value = 16\n", "pack/__init__.py")
    write(tmp_path, "from . import value\n" + LOOP.replace("mlp()", "mlp(value)"), "pack/fit.py")
    monkeypatch.chdir(tmp_path)
    for words, width in (([Path("work/train.py")], 32), ([Path("pack.fit"), "-m"], 16)):
        report, _ = measured(capsys, *words)
        assert report.by_category["parameters"] == 4 * (64 * width + width + width * 64 + 64)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_loader_workers_are_inputs(workers, tmp_path, capsys):
    text = f"""
    from torch.utils.data import DataLoader, Dataset
    class Noise(Dataset):
        def __init__(self):
            self.front = nn.Linear(64, 64)
        def __len__(self):
            return 640
        def __getitem__(self, i):
            with torch.no_grad():
                return self.front(torch.full((64,), float(i)))
    if __name__ == "__main__":
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for epoch in range(2):
            for i, x in enumerate(DataLoader(Noise(), batch_size=320, num_workers={workers})):
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()
                print("epoch", epoch, "batch", i)
    """
    report, err = measured(capsys, write(tmp_path, text), "--steps", 4)
    assert "epoch 1 batch 1" in err, err
    assert report.covers == "training steps 2 to 4"
    assert report.by_category["inputs"] >= 320 * 64 * 4
    front = 4 * (64 * 64 + 64)
    assert report.by_category["parameters"] == WEIGHTS + front
    assert report.by_category["optimizer state"] == WEIGHTS


def test_frozen_parts_and_mixed_precision(tmp_path, capsys):
    text = """
    front, back = nn.Linear(64, 64), nn.Sequential(mlp(), nn.GELU()).requires_grad_(False)
    optimizer = torch.optim.Adam(front.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** 100)
    for i in range(200):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = back(front(torch.randn(2048, 64))).float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    """
    report, _ = measured(capsys, write(tmp_path, text))
    assert report.by_category["optimizer state"] == 2 * 4 * (64 * 64 + 64) + 2 * 4
    assert report.saved_by["frozen parts"] > report.saved_by["trainable parts"] > 0
    assert sum(report.saved_by.values()) == report.by_category["saved for backward"]


def test_files_for_other_viewers(tmp_path, capsys):
    words = ["--trace", tmp_path / "new" / "trace.json", "--snapshot", tmp_path / "step.pickle"]
    report, _ = measured(capsys, write(tmp_path, LOOP), *words)
    events = json.loads((tmp_path / "new" / "trace.json").read_text())["traceEvents"]
    assert max(sum(event["args"].values()) for event in events if event["ph"] == "C") == report.peak_bytes
    snapshot = pickle.loads((tmp_path / "step.pickle").read_bytes())
    flat = _memory_viz.memory(snapshot, format_flamegraph=str)
    assert "train.py" in flat
    assert "snapshot.pickle" in _memory_viz.trace_plot(snapshot)


def test_a_step_is_predicted_for_cuda_where_there_is_none(capsys):
    words = ["semcom", "--fake", "--device", "cuda", "--training.batch-size", "2"]
    assert run("measure", *words) == 0
    out = capsys.readouterr().out
    assert out.startswith("predicted peak ") and " on cuda\n" in out
    assert "CUDA's, simulated" in out and "by the memory-efficient kernel" in out
    assert "not seen: the CUDA context" in out and "not seen: answers longer than 32 tokens" in out
    assert run("measure", *words, "--json") == 0
    report = from_json(capsys.readouterr().out)
    assert (report.method, report.device) == ("predicted", "cuda")
    assert report.allocator.peak_reserved_bytes % 2**21 == 0


@pytest.mark.parametrize("fake", [[], ["--fake"]])
def test_files_of_a_system(fake, tmp_path, capsys):
    files = [tmp_path / "trace.json", tmp_path / "step.pickle"]
    words = ["--training.batch-size", "4", "--data.num-scenes", "16", "--json", *fake]
    assert run("measure", "semcom", *words, "--trace", files[0], "--snapshot", files[1]) == 0
    report = from_json(capsys.readouterr().out)
    counters = [e["args"] for e in json.loads(files[0].read_text())["traceEvents"] if e["ph"] == "C"]
    assert max(sum(args.values()) for args in counters) == report.peak_bytes
    assert _memory_viz.segsum(pickle.loads(files[1].read_bytes()))
    assert report.saved_by["frozen parts"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.py"], "cannot read the script: No such file or directory"),
        (["folder.py"], "the script is a directory"),
        (["picture.py"], "the script is not Python"),
        (["no.such", "-m"], "there is no module 'no.such' that can be run"),
        (["train.py", "--fake"], "a script runs as it is"),
        (["train.py", "--steps", "0"], "Must be >= 1"),
        (["semcom", "--steps", "3"], "--steps is for training scripts"),
        (["train.py", "--trace", "folder.py"], "the file cannot be written: Is a directory"),
        (["train.py", "--snapshot", "train.py/x.pickle"], "the directory cannot be made"),
    ],
)
def test_what_cannot_be_measured_says_why_and_exits_with_2(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "print('it ran')\n")
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "picture.py").write_bytes(b"\x89PNG\x00")
    assert run("measure", *words) == 2
    out, err = capsys.readouterr()
    assert message in err and "Traceback" not in err
    assert "it ran" not in out


def test_a_process_of_its_own_prints_clean_json(tmp_path):
    text = LOOP + "\n"
    path = write(tmp_path, 'import os\nos.system("echo child")\n' + text)
    command = [sys.executable, "-m", "frostline", "measure", path, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert isinstance(from_json(done.stdout), MemoryReport)
    assert "child" in done.stderr and "step 1" in done.stderr


def test_training_is_the_same_under_the_instruments(tmp_path, capsys):
    """The same losses, bit by bit, as without them."""
    text = LOOP.replace("100", "4").replace('print("step", i)', "print('loss', loss.item().hex())")
    path = write(tmp_path, text + "print('state', torch.get_rng_state().sum().item())\n")
    plain = subprocess.run([sys.executable, path], capture_output=True, text=True, check=True).stdout.splitlines()
    _, err = measured(capsys, path, "--steps", 9)
    assert [line for line in err.splitlines() if line] == plain
    assert len(plain) == 5
