import pytest
import torch
from torch import nn

from frostline.errors import CheckpointError
from frostline.regions import (
    freeze_,
    load_trainable_state_,
    trainable_parameters,
    trainable_state,
)


def model():
    net = nn.ModuleDict(
        {
            "trunk": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)),
            "codec": nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)),
        }
    )
    freeze_(net["trunk"])
    net["codec"][0].register_buffer("scratch", torch.zeros(1), persistent=False)
    return net


CODEC = {f"codec.{i}.{name}" for i in (0, 1) for name in ("weight", "bias")}
STATISTICS = {f"codec.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}


def test_tied_parameters_are_listed_once():
    net = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    net["b"].weight = net["a"].weight
    assert list(trainable_parameters(net)) == ["a.weight"]


def test_the_state_holds_what_trains_and_its_statistics_and_nothing_frozen():
    assert set(trainable_parameters(model())) == CODEC
    assert set(trainable_state(model())) == CODEC | STATISTICS


def test_the_state_can_be_loaded_back():
    source, target = model(), model()
    source["codec"](torch.randn(5, 2))
    load_trainable_state_(target, trainable_state(source))
    for name, tensor in trainable_state(target).items():
        assert torch.equal(tensor, trainable_state(source)[name])


def test_a_state_that_does_not_fit_is_named_in_full_and_nothing_is_loaded():
    net = model()
    before = {name: tensor.clone() for name, tensor in trainable_state(net).items()}
    state = {name: torch.ones_like(tensor) for name, tensor in before.items()}
    state["codec.0.weight"] = torch.ones(4, 2)
    state["extra"] = state.pop("codec.0.bias")
    with pytest.raises(CheckpointError) as raised:
        load_trainable_state_(net, state)
    for part in (
        "missing codec.0.bias",
        "unexpected extra",
        "codec.0.weight is (4, 2), the model's is (3, 2)",
    ):
        assert part in str(raised.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainable_state(net).items())
