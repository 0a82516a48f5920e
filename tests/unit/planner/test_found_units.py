"""Which parts of a model a plan decides about."""

import pytest
from planner_toys import Block, Transformer, mlp
from torch import nn

from frostline.planner import find_units


class Stage(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.blocks = nn.ModuleList([mlp(dim), mlp(dim)])
        self.down = nn.Linear(dim, dim)


class Experts(nn.Module):
    """A layer that is mainly a list of alike parts, as a mixture of experts is."""

    def __init__(self):
        super().__init__()
        self.experts, self.router = nn.ModuleList(mlp() for _ in range(4)), nn.Linear(32, 4)

    def forward(self, x):
        return sum(expert(x) for expert in self.experts)


class Stages(nn.Module):
    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList([Stage(16), Stage(32), Stage(64)])


Stage.forward = lambda self, x: x
MODELS = {
    "blocks of a list": (Transformer(3), ("blocks.0", "blocks.1", "blocks.2")),
    "blocks of a sequence": (nn.Sequential(nn.Linear(8, 64), Block(64), Block(64)), ("1", "2")),
    "stages that differ are entered": (Stages(), tuple(f"stages.{i}.blocks.{j}" for i in range(3) for j in range(2))),
    "layers that are alike are not": (nn.Sequential(Experts(), Experts()), ("0", "1")),
    "no repetition: heavy children": (nn.Sequential(nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 50)), ("0", "2")),
    "below a lone wrapper": (
        nn.ModuleDict({"net": nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9))}),
        ("net.0", "net.1"),
    ),
    "single layers of a sequence are no blocks": (nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9)), ("0", "1")),
    "nothing to treat": (nn.ReLU(), ()),
}


def shared():
    model = nn.ModuleDict({"first": nn.ModuleList([mlp(), mlp()])})
    model["second"] = nn.ModuleList([model["first"][1], mlp()])
    return model


MODELS["a block in two lists has its first name"] = (shared(), ("first.0", "first.1", "second.1"))
MODELS["blocks of a dictionary"] = (nn.ModuleDict({"a": mlp(), "b": mlp()}), ("a", "b"))


@pytest.mark.parametrize("name", MODELS)
def test_units(name):
    model, units = MODELS[name]
    assert find_units(model) == units


def test_a_container_that_is_never_called_is_no_unit():
    model = nn.ModuleDict({"a": nn.ModuleList([nn.Linear(8, 8)]), "b": nn.Linear(8, 8)})
    assert find_units(model) == ("b",)
