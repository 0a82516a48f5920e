import random

import numpy as np
import pytest
import torch
from torch import nn

from frostline.regions import preserved


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def train(model, optimizer):
    optimizer.zero_grad(set_to_none=False)
    model(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()


def facts(model, optimizer):
    tensors = [
        *model.parameters(),
        *model.buffers(),
        *(p.grad for p in model.parameters() if p.grad is not None),
    ]
    tensors += [value for state in optimizer.state.values() for value in state.values()]
    return [tensor.detach().clone() for tensor in tensors], [id(tensor) for tensor in tensors]


@pytest.mark.parametrize("num_steps_before", [0, 2])
@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_as_it_was(num_steps_before, fails):
    model = net()
    model[3].bias.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(num_steps_before):
        train(model, optimizer)
    (values, objects), torch_state, modes = facts(model, optimizer), torch.get_rng_state(), model[2].training
    python_state, numpy_state = random.getstate(), np.random.get_state()[1].copy()

    def step():
        with preserved(model, [optimizer]):
            train(model, optimizer)
            train(model, optimizer)
            model.eval()
            model[1].running_mean = torch.ones(4)
            model[3].requires_grad_(True)
            optimizer.param_groups[0]["lr"] = 7.0
            optimizer.add_param_group({"params": [model[3].bias]})
            random.random(), np.random.rand()
            if fails:
                raise KeyError

    if fails:
        with pytest.raises(KeyError):
            step()
    else:
        step()
    values_after, objects_after = facts(model, optimizer)
    assert objects_after == objects
    assert all(torch.equal(a, b) for a, b in zip(values, values_after, strict=True))
    assert len(optimizer.state) == (5 if num_steps_before else 0)
    assert model[2].training is modes and not model[3].bias.requires_grad
    assert len(optimizer.param_groups) == 1 and optimizer.param_groups[0]["lr"] == 0.1
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state and np.array_equal(np.random.get_state()[1], numpy_state)


def test_training_goes_on_as_if_nothing_had_happened():
    ends = []
    for looks in (False, True):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            train(model, optimizer)
            if looks:
                with preserved(model, [optimizer]):
                    train(model, optimizer)
        ends.append(facts(model, optimizer)[0])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_a_parameter_outside_the_model_comes_back_through_its_optimizer():
    token = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([token], lr=1.0)
    with preserved(nn.Linear(1, 1), [optimizer]):
        token.sum().backward()
        optimizer.step()
        assert token[0] == -1
    assert torch.equal(token, torch.zeros(3)) and token.grad is None
