"""A plan leaves no tensor without values in the variables of a step."""

from collections import deque
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from planner_toys import mlp
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from frostline.planner import plan

mean = torch.zeros(())


@dataclass
class Trainer:
    history: list = field(default_factory=list)
    last: object = None

    def note(self, loss):
        self.history.append(loss)
        self.last = loss


def made(note):
    """A step that tells `note` its loss."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), mlp(), mlp())
    x = torch.randn(64, 32)

    def step():
        loss = model(x).square().mean()
        loss.backward()
        model.zero_grad()
        note(loss.detach())
        return loss.detach()

    return model, step


def real(value):
    return isinstance(value, Tensor) and not isinstance(value, FakeTensor)


def in_a_dictionary():
    state = {"mean": torch.zeros(()), "all": deque(maxlen=4), "best": SimpleNamespace(loss=None)}

    def note(loss):
        state["mean"] = 0.9 * state["mean"] + 0.1 * loss
        state["all"].append({"loss": loss})
        state["best"].loss = loss

    return note, lambda: (state["mean"], *(each["loss"] for each in state["all"]), state["best"].loss)


def in_a_cell():
    last = torch.zeros(())

    def note(loss):
        nonlocal last
        last = last + loss

    return note, lambda: (last,)


def in_a_global():
    def note(loss):
        global mean, first  # noqa: PLW0603 - that is the case
        mean = 0.9 * mean + 0.1 * loss
        first = loss

    return note, lambda: (mean, globals().get("first"))


def in_an_object():
    trainer = Trainer()
    return trainer.note, lambda: (*trainer.history, trainer.last)


@pytest.mark.parametrize("place", [in_a_dictionary, in_a_cell, in_a_global, in_an_object])
def test_what_a_step_notes_has_values(place):
    note, kept = place()
    model, step = made(note)
    plan(step, model, budget="smallest", units=["1", "2"])
    assert all(real(value) for value in kept() if value is not None)
    step()
    assert len(kept()) == len([value for value in kept() if real(value)])
