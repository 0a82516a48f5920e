"""A step that ran out of memory is as if it had never been tried."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_toy import SETTINGS, Recorder, Toy, equal

from allocation_limit import AllocationLimit
from frostline.errors import StepError
from frostline.ops import checkpoint_
from frostline.training import CheckpointStore, RunLog, run


def train(toy, directory, relieve=None):
    return run(
        toy,
        toy.settings,
        group=toy.group,
        store=CheckpointStore(Path(directory)),
        config_text="name: toy\n",
        log=RunLog(Path(directory) / "log.jsonl", log_every=4, tensorboard=False),
        observer=Recorder(),
        relieve=relieve,
    )


class Tight(Toy):
    """Has no memory left behind the backward of a micro-batch, when a phase is in its third step."""

    def __init__(self, *args, phase=0, **kwargs):
        super().__init__(*args, **kwargs)
        self.num_failures, tight = 0, self.phases[phase]
        loss = tight.loss

        def exhausted(batch):
            made = loss(batch)  # drops out, and updates the statistics of a BatchNorm
            if tight.step == 2 and self.num_failures < 3:
                self.num_failures += 1
                if self.num_failures != 2:  # else the second micro-batch of the second attempt fails
                    raise torch.OutOfMemoryError("no memory left")
            return made

        tight.loss = exhausted


@pytest.mark.parametrize("phase", [0, 1])
@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_a_repeated_step_is_bit_exact(precision, phase, tmp_path):
    settings = replace(SETTINGS, precision=precision)
    smooth, said = Toy(settings, dropout=0.3, norm=True), []
    train(smooth, tmp_path / "smooth")
    expected = smooth.state()
    tight = Tight(settings, dropout=0.3, norm=True, phase=phase)
    report = train(tight, tmp_path / "tight", relieve=said.append)
    assert said == ["no memory left"] * 2 and tight.num_failures == 3
    assert equal(expected, tight.state())
    assert report.num_steps == settings.num_steps and not report.interrupted
    lines = (tmp_path / "tight" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if "record" in line] == [4, 4, 8, 8, 10, 10]


def test_when_it_is_called_the_failed_step_has_left_no_memory_and_no_gradients(tmp_path):
    smooth = Toy(dropout=0.3, norm=True)
    with AllocationLimit(2**40) as ample:
        train(smooth, tmp_path / "smooth")
    expected, toy = smooth.state(), Toy(dropout=0.3, norm=True)
    left = []
    with AllocationLimit(ample.peak_bytes - 1) as limit:

        def relieve(said):
            left.append((limit.live_bytes, [p.grad for p in toy.model.parameters() if p.grad is not None]))
            limit.limit_bytes = 2**40

        train(toy, tmp_path / "tight", relieve)
    ((num_bytes, gradients),) = left
    assert gradients == [] and num_bytes < 0.8 * ample.peak_bytes
    assert equal(expected, toy.state())


def test_a_treatment_installed_in_between_saves_what_it_takes(tmp_path):
    smooth, handles = Toy(dropout=0.3), []
    checkpoint_(smooth.model, ["trunk"])
    train(smooth, tmp_path / "smooth")
    expected, toy = smooth.state(), Tight(dropout=0.3)
    train(toy, tmp_path / "tight", lambda _: handles.append(checkpoint_(toy.model, ["trunk"])) if not handles else None)
    assert handles and equal(expected, toy.state())


def test_what_the_relief_raises_ends_the_run(tmp_path):
    def give_up(said):
        raise StepError(f"nothing is left to be made smaller: {said}")

    toy = Tight()
    with pytest.raises(StepError, match="nothing is left to be made smaller: no memory left"):
        train(toy, tmp_path, give_up)
    assert all(parameter.grad is None for parameter in toy.model.parameters())


def test_no_step_is_repeated_after_its_update_has_begun(tmp_path, monkeypatch):
    toy, asked = Toy(), []

    def exhausted(*args, **kwargs):
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(toy.phases[0].optimizers[1], "step", exhausted)
    with pytest.raises(
        StepError, match="memory ran out in the update, and some parameters may have it already: no memory"
    ):
        train(toy, tmp_path, asked.append)
    assert asked == []
