import copy

import torch
from torch import nn

from frostline.regions import freeze_, is_frozen, unfreeze_


def trunk():
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 4))


def test_a_frozen_region_stays_in_eval_through_train_above_it():
    model = nn.ModuleDict({"trunk": trunk(), "head": nn.Linear(4, 1)})
    freeze_(model["trunk"])
    model.train()
    assert model["head"].training
    assert not any(module.training for module in model["trunk"].modules())
    assert not any(parameter.requires_grad for parameter in model["trunk"].parameters())
    statistics = model["trunk"][1].running_mean.clone()
    model["trunk"](torch.randn(8, 4))
    assert torch.equal(model["trunk"][1].running_mean, statistics)


def test_is_frozen_knows_the_root_and_what_is_inside():
    model = nn.Sequential(trunk(), nn.Linear(4, 1))
    freeze_(model[0])
    assert is_frozen(model[0]) and is_frozen(model[0][1])
    assert not is_frozen(model) and not is_frozen(model[1])
    assert not is_frozen(nn.Linear(1, 1).requires_grad_(False))


def test_freezing_twice_is_freezing_once():
    model = trunk()
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    freeze_(model)
    freeze_(model)
    unfreeze_(model)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert model.train()[2].training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_last_block_of_a_frozen_model_can_be_unfrozen():
    model = trunk()
    freeze_(model)
    unfreeze_(model[3])
    model.train()
    assert model[3].training and model[3].weight.requires_grad
    assert not model[1].training and not model.training


def test_an_adapter_added_to_a_frozen_model_trains():
    model = trunk()
    freeze_(model)
    model[0].adapter = nn.Linear(4, 2)
    model.train()
    assert model[0].adapter.training and not model[0].training


def test_a_train_method_that_returns_nothing_is_no_obstacle():
    class Forgetful(nn.Linear):
        def train(self, mode=True):
            super().train(mode)

    model = nn.Sequential(nn.Sequential(Forgetful(1, 1)))
    freeze_(model[0])
    assert model.train() is model
    assert not model[0].training and not model[0][0].training


def test_a_copy_is_frozen_by_itself():
    model = trunk()
    freeze_(model)
    twin = copy.deepcopy(model)
    unfreeze_(model)
    assert not twin.train().training and is_frozen(twin)
    assert model.train().training


def test_unfreezing_leaves_integer_parameters_alone():
    model = nn.Module()
    model.code = nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False)
    freeze_(model)
    unfreeze_(model)
    assert not model.code.requires_grad
