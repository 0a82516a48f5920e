from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from frostline.errors import CheckpointError
from frostline.training import Checkpoint, CheckpointStore
from frostline.training import checkpoint as module


def state(step):
    return Checkpoint(
        step=step,
        trainables={"encoder.weight": torch.full((4, 3), float(step)).t(), "steps": torch.tensor(step)},
        phases={"fit": {"optimizers": [{"state": {0: torch.ones(2) * step}}], "step": step, "betas": (0.9, 0.99)}},
        rng=[{"cpu": torch.get_rng_state()}],
        config_text="name: toy\n",
    )


def assert_is(checkpoint, step):
    assert checkpoint.step == checkpoint.phases["fit"]["step"] == step
    assert torch.equal(checkpoint.trainables["encoder.weight"], torch.full((3, 4), float(step)))
    assert torch.equal(checkpoint.phases["fit"]["optimizers"][0]["state"][0], torch.ones(2) * step)
    assert checkpoint.phases["fit"]["betas"] == (0.9, 0.99)
    assert torch.equal(checkpoint.rng[0]["cpu"], torch.get_rng_state())


def test_what_is_saved_is_loaded(tmp_path):
    store = CheckpointStore(tmp_path / "new" / "run", trainables="vector.safetensors")
    path = store.save(state(5))
    assert path == tmp_path / "new" / "run" / "vector.safetensors"
    assert sorted(file.name for file in path.parent.iterdir()) == ["resume.pt", "vector.safetensors"]
    assert_is(store.load(), 5)
    assert torch.equal(store.load_trainables()["steps"], torch.tensor(5))
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"step": "5"}


class CrashError(Exception):
    pass


def crashing(function, countdown):
    def wrapper(*args):
        countdown[0] -= 1
        if countdown[0] < 0:
            raise CrashError
        return function(*args)

    return wrapper


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("num_survived", range(4))
@pytest.mark.parametrize("first", [False, True])
def test_a_crash_at_any_write_or_move_leaves_a_whole_checkpoint(tmp_path, monkeypatch, num_survived, torn, first):
    store = CheckpointStore(tmp_path)
    if not first:
        store.save(state(5))
    countdown, write = [num_survived], module._write
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crashing(Path.replace, countdown))
        patch.setattr(module, "_write", crashing(write, countdown))
        with pytest.raises(CrashError):
            store.save(state(6))
    if torn and num_survived < 2:  # the write that died left half a file
        path = [store.trainables, store.resume][num_survived]
        write(path.with_name(f"{path.name}.next"), b"half")
    if num_survived == 3:  # between the two moves: the new one is whole, though not all in place
        assert_is(store.load(), 6)
    elif first:
        with pytest.raises(CheckpointError, match=r"there is no codec\.safetensors"):
            store.load()
    else:
        assert_is(store.load(), 5)
    store.save(state(7))
    assert_is(store.load(), 7)


def test_a_crash_right_after_a_recovery_loses_nothing(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    store.save(state(5))
    for num_survived in (3, 1):
        with monkeypatch.context() as patch:
            countdown = [num_survived]
            patch.setattr(Path, "replace", crashing(Path.replace, countdown))
            patch.setattr(module, "_write", crashing(module._write, countdown))
            with pytest.raises(CrashError):
                store.save(state(6 if num_survived == 3 else 7))
        assert_is(store.load(), 6)


def test_the_old_step_of_another_run_is_not_mixed_in(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(state(5))
    other = CheckpointStore(tmp_path / "other")
    other.save(Checkpoint(**{**vars(state(5)), "trainables": {"encoder.weight": torch.zeros(3, 4)}}))
    other.resume.replace(tmp_path / "resume.pt.next")  # same step, other values
    assert_is(store.load(), 5)


def test_a_missing_file_is_an_error(tmp_path):
    store = CheckpointStore(tmp_path)
    for load in (store.load, store.load_trainables):
        with pytest.raises(CheckpointError, match=r"there is no codec\.safetensors\n  where .*\n  do "):
            load()
    store.save(state(5))
    store.resume.unlink()
    with pytest.raises(CheckpointError, match=r"there is no resume\.pt"):
        store.load()


def test_a_damaged_file_is_an_error(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(state(5))
    whole = store.resume.read_bytes()
    for damaged in (b"", b"half a file", whole[: len(whole) // 2]):
        store.resume.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"resume\.pt is damaged: \w+\n  where .*\n  do     restore it"):
            store.load()
    store.resume.write_bytes(whole)
    store.trainables.write_bytes(store.trainables.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"codec\.safetensors was not saved with resume\.pt of step 5"):
        store.load()
    with pytest.raises(CheckpointError, match=r"codec\.safetensors is damaged"):
        store.load_trainables()


def test_trainables_of_another_step_are_an_error(tmp_path):
    store, other = CheckpointStore(tmp_path), CheckpointStore(tmp_path / "other")
    store.save(state(5))
    other.save(state(6))
    other.trainables.replace(store.trainables)
    with pytest.raises(CheckpointError, match=r"codec\.safetensors was not saved with resume\.pt of step 5"):
        store.load()


def test_another_format_is_an_error(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_FORMAT", 2)
        store.save(state(5))
    with pytest.raises(CheckpointError, match=r"resume\.pt has format 2, this version reads 1"):
        store.load()
