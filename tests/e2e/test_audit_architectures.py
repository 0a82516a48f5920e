"""One training step of every family of transformers' models: whole gradients, and an audit that says so."""

from __future__ import annotations

from functools import partial

import pytest

import frostline as fl
from hf_architectures import ARCHITECTURES


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_trainable_parameter_gets_a_gradient(name):
    workload = ARCHITECTURES[name]()
    trainable = {key: p for key, p in workload.model.named_parameters() if p.requires_grad}
    silent = set(trainable)

    def note(key, p):
        if p.grad is not None and p.grad.any():
            silent.discard(key)

    for key, p in trainable.items():
        p.register_post_accumulate_grad_hook(partial(note, key))
    workload.step()
    assert silent == set()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_audit_finds_neither_fault_nor_cost(name):
    workload = ARCHITECTURES[name]()
    report = fl.audit(workload.step, workload.model, workload.optimizers)
    assert [finding for finding in report.findings if finding.level != "note"] == []
    assert report.num_steps == 1
