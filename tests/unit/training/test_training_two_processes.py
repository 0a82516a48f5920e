import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import training_toy
from training_toy import SETTINGS, Recorder, Toy, train


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    directory = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, training_toy.__file__, str(directory)]
    children = []
    for rank in ("0", "1"):
        environment = {**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank}
        children.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        errors = [child.communicate(timeout=120)[1] for child in children]
    finally:
        for child in children:
            child.kill()
    paths = [Path(directory) / f"result{rank}.pt" for rank in (0, 1)]
    assert all(path.exists() for path in paths), errors
    return [torch.load(path, weights_only=True) for path in paths]


def test_two_processes_equal_one_with_the_global_batch(results, tmp_path):
    alone, watch = Toy(replace(SETTINGS, gradient_accumulation_steps=1)), Recorder()
    train(alone, tmp_path, observer=watch)
    for name, tensor in alone.state()["trainables"].items():
        assert (results[0]["trainables"][name] - tensor).abs().max() <= 1e-6
        assert torch.equal(results[0]["trainables"][name], results[1]["trainables"][name])
    for theirs, ours in zip(results[0]["records"], watch.records, strict=True):
        assert theirs["loss"] == pytest.approx(ours.loss, abs=1e-6)
        assert theirs["terms"] == pytest.approx(ours.terms, abs=1e-6)
        assert theirs["gradient_norm"] == pytest.approx(ours.gradient_norm, abs=1e-5)


def test_only_the_main_process_tells_the_observer(results):
    assert results[0]["records"]
    assert not results[1]["records"]
    assert results[0]["loss"] == results[1]["loss"]


def test_two_processes_resume_bit_by_bit(results):
    assert results[0]["resumed_equal"]
    assert results[1]["resumed_equal"]
    assert not torch.equal(results[0]["rng"], results[1]["rng"])


def test_buffers_are_the_main_process_s_everywhere(results):
    assert torch.equal(results[0]["buffers"]["norm.running_mean"], results[1]["buffers"]["norm.running_mean"])


def test_a_process_without_weight_takes_the_other_s_gradient(results):
    (tensors, loss, num_skipped), (others, other_loss, _) = (result["idle"] for result in results)
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)
    assert loss == other_loss > 0
    assert num_skipped == 0


def test_gather_orders_by_rank(results):
    assert results[0]["gathered"] == results[1]["gathered"] == [0, 1]


def test_a_signal_to_one_process_stops_both_after_the_same_step(results):
    assert results[0]["stopped"] == results[1]["stopped"] == (3, True)
