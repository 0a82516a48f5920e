from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from frostline.regions import load_trainable_state_, trainable_parameters, trainable_state
from frostline.systems.graf import average_of, update_average_
from frostline.systems.graf.config import AverageConfig
from graf_parts import draw_of, players


def test_an_average_by_hand():
    module = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(1.0)
        average = average_of(module)
        expected = 1.0
        for step, value in enumerate((2.0, 5.0, -1.0)):
            module.weight.fill_(value)
            update_average_(average, module, AverageConfig(decay=0.15), step=step)
            decay = min(0.15, (1 + step) / (10 + step))
            expected = decay * expected + (1 - decay) * value
            assert float(average.weight) == pytest.approx(expected)


def test_an_average_has_no_parameters_and_renders():
    generator, _ = players()
    average = average_of(generator)
    assert list(average.parameters()) == [] and not average.training
    assert list(average.state_dict()) == list(generator.state_dict())
    draw = draw_of(generator)
    with torch.no_grad():
        before = average(draw).image
        assert torch.equal(before, generator(draw).image)
        for parameter in generator.parameters():
            parameter.add_(0.1)
        assert torch.equal(average(draw).image, before)
        for step in range(2000):
            update_average_(average, generator, AverageConfig(decay=0.99), step=step)
        torch.testing.assert_close(average(draw).image, generator(draw).image, rtol=0, atol=1e-6)


def test_a_run_saves_it_and_loads_it_back():
    generator, _ = players()
    both = nn.ModuleDict({"generator": generator, "average": average_of(generator)})
    state = {name: value.clone() for name, value in trainable_state(both).items()}
    assert all(name.startswith("generator.") for name in trainable_parameters(both))
    assert {name for name in state if name.startswith("average.")} == {f"average.{n}" for n in generator.state_dict()}
    other = copy.deepcopy(both)
    with torch.no_grad():
        for value in other["average"].buffers():
            value.zero_()
    load_trainable_state_(other, state)
    assert all(torch.equal(value, state[name]) for name, value in trainable_state(other).items())


def test_buffers_follow():
    module = nn.BatchNorm1d(2)
    average = average_of(module)
    module(torch.randn(4, 2) + 3)
    update_average_(average, module, AverageConfig(), step=10**6)
    assert int(average.num_batches_tracked) == 1
    torch.testing.assert_close(average.running_mean, 0.001 * module.running_mean)
