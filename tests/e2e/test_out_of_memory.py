"""A run whose steps stop fitting goes on under a lower plan, to the same bits."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import frostline.workflow.run as workflow_run
from allocation_limit import AllocationLimit
from frostline.errors import BudgetError
from frostline.records import Plan, from_json
from frostline.systems.semcom.config import SemcomConfig
from frostline.workflow.session import SILENT


class Notes(type(SILENT)):
    def __init__(self):
        self.texts = []

    def note(self, text):
        self.texts.append(text)


def small(budget: str) -> SemcomConfig:
    config = SemcomConfig()
    return replace(
        config,
        data=replace(config.data, num_scenes=16, num_test=20),
        memory=replace(config.memory, budget=budget, upstream_chunk=0),
        training=replace(config.training, batch_size=4, num_steps=4, warmup_steps=1),
    )


def limited(monkeypatch, limit_bytes):
    """Let no step of the next run make more than so many bytes; returns the list that gets the limit."""
    limits, real = [], workflow_run.run

    def run(*args, **kwargs):
        with AllocationLimit(limit_bytes) as limit:
            limits.append(limit)
            return real(*args, **kwargs)

    monkeypatch.setattr(workflow_run, "run", run)
    return limits


def plan_of(directory: Path) -> Plan:
    return from_json((directory / "plan.json").read_text())


def test_a_run_out_of_memory_is_planned_lower_and_ends_as_a_run_under_the_second_plan(tmp_path, monkeypatch):
    plain = small("1GiB")
    limits = limited(monkeypatch, 2**40)
    workflow_run.train(plain, out=tmp_path / "ample", device="cpu")
    first = plan_of(tmp_path / "ample")
    assert first.treated == ()
    monkeypatch.undo()

    notes = Notes()
    tight = limited(monkeypatch, limits[0].peak_bytes - 2**17)
    report = workflow_run.train(plain, out=tmp_path / "tight", observer=notes, device="cpu")
    monkeypatch.undo()
    second = plan_of(tmp_path / "tight")
    assert tight[0].num_failures >= 1 and report.num_steps == 4
    assert second.treated and second.predicted_peak_bytes < first.predicted_peak_bytes
    assert sum(text.startswith("out of memory: the step is undone") for text in notes.texts) == tight[0].num_failures

    workflow_run.train(small(str(second.budget_bytes)), out=tmp_path / "second", device="cpu")
    assert plan_of(tmp_path / "second").treatments == second.treatments
    resumed = [torch.load(tmp_path / name / "resume.pt", weights_only=True) for name in ("tight", "second")]
    weights = [(tmp_path / name / "codec.safetensors").read_bytes() for name in ("tight", "second", "ample")]
    assert weights[0] == weights[1] == weights[2]
    assert torch.equal(resumed[0]["rng"][0]["cpu"], resumed[1]["rng"][0]["cpu"])
    moments = [state["phases"]["codec"]["optimizers"][0]["state"] for state in resumed]
    for number, state in moments[0].items():
        assert all(torch.equal(value, moments[1][number][name]) for name, value in state.items())


def test_a_run_that_is_at_its_smallest_peak_ends_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(workflow_run, "run", lambda *_, relieve, **__: relieve("no memory left"))
    with pytest.raises(BudgetError, match="the smallest peak of this step is"):
        workflow_run.train(small("smallest"), out=tmp_path / "run", device="cpu")
