import json
import signal
from dataclasses import replace

import pytest
import torch
from training_toy import SETTINGS, Recorder, Toy, equal, straight_and_resumed, train

from frostline.errors import CheckpointError, ConfigError
from frostline.records import StepRecord, from_json
from frostline.training import CheckpointStore


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_resume_is_bit_exact(precision, tmp_path):
    expected, resumed = straight_and_resumed(tmp_path, replace(SETTINGS, precision=precision))
    assert resumed["phases"]["codec"]["step"] == 10
    assert equal(expected, resumed)


def test_results_do_not_depend_on_the_number_of_workers(tmp_path):
    states = []
    for num_workers in (0, 2):
        toy = Toy(num_workers=num_workers, dropout=0.3)
        train(toy, tmp_path / str(num_workers))
        states.append(toy.state())
    assert equal(*states)


def test_training_lowers_the_loss_and_reports_it(tmp_path):
    settings = replace(SETTINGS, num_steps=60)
    toy, watch = Toy(settings), Recorder()
    report = train(toy, tmp_path, observer=watch)
    assert watch.start == (60, 0)
    assert len(watch.records) == 120
    assert report.last[1].loss < 0.5 * report.first[1].loss
    assert [record.phase for record in report.last] == ["codec", "critic"]
    assert (report.num_steps, report.interrupted) == (60, False)
    assert report.num_trainable == sum(p.numel() for p in toy.model.parameters() if p.requires_grad)
    assert report.num_trainable + report.num_frozen == sum(p.numel() for p in toy.model.parameters())
    assert report.last[0].peak_bytes == 123
    assert report.last[1].data_seconds == 0.0 < report.last[0].data_seconds
    assert watch.saved_paths == [tmp_path / "codec.safetensors"]


def test_frozen_modules_stay_as_they_are(tmp_path):
    toy = Toy()
    before = {name: tensor.clone() for name, tensor in toy.model.trunk.state_dict().items()}
    train(toy, tmp_path)
    assert not toy.model.trunk[1].training
    assert equal(before, dict(toy.model.trunk.state_dict()))
    assert not any("trunk" in name for name in CheckpointStore(tmp_path).load_trainables())


def test_checkpoints_come_every_so_often_and_at_the_end(tmp_path):
    watch = Recorder()
    train(Toy(replace(SETTINGS, checkpoint_every=4)), tmp_path, observer=watch)
    assert len(watch.saved_paths) == 3
    assert CheckpointStore(tmp_path).load().step == 10
    assert CheckpointStore(tmp_path).load().config_text == "name: toy\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_step_with_its_state_saved(number, tmp_path):
    class Impatient(Recorder):
        def stepped(self, record):
            super().stepped(record)
            if record.step == 3 and record.phase == "codec":
                signal.raise_signal(number)

    whole = Toy(dropout=0.3)
    train(whole, tmp_path / "whole")
    expected = whole.state()
    report = train(Toy(dropout=0.3), tmp_path / "cut", observer=Impatient())
    assert (report.num_steps, report.interrupted) == (3, True)
    resumed = Toy(dropout=0.3)
    assert not train(resumed, tmp_path / "cut", resume=True).interrupted
    assert equal(expected, resumed.state())


def test_a_resumed_log_has_every_window_once(tmp_path):
    train(Toy(), tmp_path)  # a run that went on to step 10 ...
    train(Toy(), tmp_path / "five", num_steps=5)
    (tmp_path / "five" / "log.jsonl").write_text((tmp_path / "log.jsonl").read_text() + '{"rec')
    train(Toy(), tmp_path / "five", resume=True)  # ... but was saved at step 5 only
    lines = (tmp_path / "five" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4, 4, 8, 8, 10, 10]
    assert all(isinstance(from_json(line), StepRecord) for line in lines)


def test_resume_without_a_checkpoint_is_no_fresh_run(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no codec\.safetensors"):
        train(Toy(), tmp_path / "nowhere", resume=True)


def test_resume_refuses_another_number_of_processes_and_other_phases(tmp_path):
    toy = Toy()
    train(toy, tmp_path, num_steps=1)
    store = CheckpointStore(tmp_path)
    checkpoint = store.load()
    store.save(replace(checkpoint, rng=[*checkpoint.rng, *checkpoint.rng]))
    with pytest.raises(CheckpointError, match="of 2 processes, the run has 1"):
        train(Toy(), tmp_path, resume=True)
    store.save(replace(checkpoint, phases={"codec": checkpoint.phases["codec"]}))
    with pytest.raises(CheckpointError, match=r"of the phases \['codec'\]"):
        train(Toy(), tmp_path, resume=True)


def test_resume_of_a_finished_run_does_nothing(tmp_path):
    train(Toy(), tmp_path)
    watch = Recorder()
    report = train(Toy(), tmp_path, resume=True, observer=watch)
    assert (report.num_steps, report.first, report.interrupted) == (10, (), False)
    assert not watch.records


def test_one_parameter_in_two_phases_is_refused_before_anything_is_written(tmp_path):
    toy = Toy()
    toy.phases[1].optimizers[0].add_param_group({"params": [toy.model.decoder.bias]})
    with pytest.raises(ConfigError, match=r"'decoder\.bias' is in the hands of two optimizers"):
        train(toy, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_error_in_a_step_closes_the_log_and_leaves_the_last_checkpoint(tmp_path):
    toy = Toy(replace(SETTINGS, checkpoint_every=2))
    loss = toy.critic_loss

    def exhausted(batch):
        if toy.phases[1].step == 3:
            raise torch.OutOfMemoryError("no memory left")
        return loss(batch)

    toy.phases[1].loss = exhausted
    with pytest.raises(torch.OutOfMemoryError):
        train(toy, tmp_path)
    assert CheckpointStore(tmp_path).load().step == 2
    assert all(parameter.grad is None for parameter in toy.model.parameters())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["step"] == 3
