"""graf's full-length bars; `make bench` runs them."""

import json
import time
from pathlib import Path

import pytest
import torch

from frostline.cli.main import main

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def one_thread():
    """Small kernels: a second thread takes CPU time and gives none back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(example, data, out):
    """The scores of a shipped example's run, and the CPU seconds it took."""
    path = DATA / data
    if not path.exists():
        pytest.skip(f"needs {data} in shared/data beside the repository")
    start = time.process_time()
    assert main(["train", str(ROOT / "examples" / example), "--data.path", str(path), "--out", str(out)]) == 0
    return scores(out), time.process_time() - start


def scores(run):
    return [json.loads(line) for line in (run / "scores.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_demo_makes_solids_of_the_class_and_pose_asked_for(tmp_path):
    start = time.process_time()
    assert main(["demo", "graf", "--out", str(tmp_path / "demo")]) == 0
    assert time.process_time() - start <= 180
    first, *_, last = scores(tmp_path / "demo")
    assert max(last["kid"], 0) <= first["kid"] / 50
    assert last["class_accuracy"] >= 0.9
    assert last["azimuth_error_degrees"] <= 20


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_photographs_on_a_turntable_train(tmp_path):
    (first, *_, last), _ = trained("graf-coil20.yaml", "coil20_32x32.mat", tmp_path / "coil")
    assert last["class_accuracy"] >= 0.9
    assert last["azimuth_error_degrees"] <= 25 < first["azimuth_error_degrees"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_one_scene_is_reconstructed(tmp_path):
    found, cpu_seconds = trained("graf-lego64.yaml", "lego64.npz", tmp_path / "lego")
    assert cpu_seconds <= 300
    assert found[-1]["squared_error"] <= 4 / 10**2.2  # a PSNR of 22 dB
