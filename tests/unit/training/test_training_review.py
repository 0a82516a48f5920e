"""What a phase and a system may add to the loop: a call behind each update, a look at the work."""

import pytest
import torch
from training_toy import Toy, train

from frostline.training import milestones


class Looking(Toy):
    """Draws random numbers whenever it looks."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.looked = []

    def review(self, step):
        torch.rand(7)
        self.looked.append((step, self.phases[0].step))


def test_a_review_is_behind_every_step_and_changes_no_random_number(tmp_path):
    plain, looking = Toy(dropout=0.3), Looking(dropout=0.3)
    train(plain, tmp_path / "plain", num_steps=4)
    train(looking, tmp_path / "looking", num_steps=4)
    assert looking.looked == [(step, step) for step in range(5)]
    for name, tensor in plain.state()["trainables"].items():
        assert torch.equal(looking.state()["trainables"][name], tensor)
    again = Looking(dropout=0.3)
    train(again, tmp_path / "looking", num_steps=6, resume=True)
    assert again.looked == [(5, 5), (6, 6)]


def test_updates_are_told_and_skipped_ones_are_not(tmp_path):
    toy, told = Toy(), []
    codec, critic = toy.phases
    codec.on_update = lambda step: told.append(("codec", step))
    codec.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    codec.scaler.scale(torch.zeros(()))
    codec.loss, loss = (lambda batch: loss(batch) if codec.step else _infinite(loss(batch))), codec.loss
    critic.on_update = lambda step: told.append(("critic", step))
    train(toy, tmp_path, num_steps=2)
    assert told == [("critic", 0), ("codec", 1), ("critic", 1)]


def _infinite(loss):
    return type(loss)(loss.total * float("inf"), loss.terms)


def test_milestones_multiply():
    schedule = milestones((2, 5), 0.5)
    assert [schedule(step) for step in (0, 1, 2, 4, 5, 9)] == [1, 1, 0.5, 0.5, 0.25, 0.25]
    assert milestones((), 0.1)(100) == pytest.approx(1)
