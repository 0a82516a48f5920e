import gc
import weakref

import pytest
import torch
from torch import nn

from frostline.gradflow.names import Names, describe, find_tensor_names
from frostline.tracing import Leaf


@pytest.fixture
def names():
    return Names()


@pytest.fixture
def model():
    return nn.ModuleDict({"body": nn.Linear(2, 2), "norm": nn.BatchNorm1d(2)})


def test_a_models_own_names(names, model):
    names.add_module(model)
    assert names.tensor(model["body"].weight) == "body.weight"
    assert names.tensor(model["norm"].running_mean) == "norm.running_mean"
    assert names.module(model["norm"]) == "norm"
    assert names.knows(model["body"]) and not names.knows(nn.Linear(1, 1))
    assert [name for name, _ in names.parameters()] == ["body.weight", "body.bias", "norm.weight", "norm.bias"]
    assert [name for name, _ in names.buffers()] == [
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
    ]
    assert [name for name, _ in names.modules()] == ["", "body", "norm"]


def test_several_models_by_name_and_two_of_one_name(names, model):
    other = nn.Linear(2, 2)
    names.add_module(model, "actor")
    names.add_module(other, "actor")
    names.add_module(model, "actor")  # again
    assert names.tensor(model["body"].bias) == "actor.body.bias"
    assert names.tensor(other.bias) == "actor2.bias"
    assert list(names.roots) == ["actor", "actor2"]


def test_shared_parameters_have_one_name_and_count_once(names):
    tied = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    tied[1].weight = tied[0].weight
    names.add_module(tied)
    names.add_module(tied[1], "head")
    assert [name for name, _ in names.parameters()] == ["0.weight"]
    assert names.tensor(tied[1].weight) == "0.weight"


def test_what_a_program_replaces(names, model):
    names.add_module(model)
    old = model["body"].weight
    model["body"] = nn.Linear(2, 2)
    assert names.tensor(model["body"].weight) == ""
    names.refresh()
    assert names.tensor(model["body"].weight) == names.tensor(old) == "body.weight"
    assert names.is_registered(model["body"].weight) and not names.is_registered(old)
    assert names.is_forgotten(old) and not names.is_forgotten(model["body"].weight)
    assert not names.is_forgotten(torch.ones(1))


def test_a_tensor_in_no_module(names):
    prompt = torch.ones(3, requires_grad=True)
    names.add_tensor(prompt, "prompt")
    assert names.tensor(prompt) == names.leaf(Leaf(prompt)) == "prompt"
    assert names.leaf(Leaf(torch.ones(2, 3))) == "tensor [2, 3]"
    assert names.leaf(Leaf(nn.Parameter(torch.ones(4)))) == "Parameter [4]"


def test_modules_are_named_by_the_variable_that_holds_them(names):
    backbone = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    names.discover(backbone[0])
    assert names.tensor(backbone[0].weight) == "backbone.0.weight"


def test_the_largest_owner_gives_the_name(names):
    inner = nn.Linear(2, 2)
    network = nn.Sequential(inner, nn.Linear(2, 2))
    names.discover(inner)
    assert names.tensor(inner.weight) == "network.0.weight"
    assert names.module(network[1]) == "network.1"


def test_attributes_and_dictionaries_of_a_trainer_are_looked_into(names):
    class Trainer:
        def __init__(self):
            self.generator = nn.Linear(2, 2)
            self.others = {"x": 1}

        def run(self):
            names.discover(self.generator)

    Trainer().run()
    assert list(names.roots) == ["generator"]
    parts = {"critic": nn.Linear(2, 2)}
    names.discover(parts["critic"])
    assert names.tensor(parts["critic"].weight) == "critic.weight"


def test_a_module_nobody_holds_is_named_by_its_class(names):
    names.discover((lambda: nn.Linear(2, 2))())
    assert list(names.roots) == ["Linear"]


def test_tensors_are_found_in_the_variables_of_callers():
    loss, losses = torch.ones(1), {"kl": torch.ones(1), "rec": [torch.ones(1)]}

    class State:
        aux = None

    state = State()
    state.aux = torch.ones(1)

    def look(wanted):
        return find_tensor_names(wanted)

    found = look({id(loss), id(losses["kl"]), id(losses["rec"][0]), id(state.aux), id(object())})
    assert found == {id(loss): "loss", id(losses["kl"]): "kl", id(losses["rec"][0]): "0", id(state.aux): "aux"}


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["head.weight"], "'head.weight'"),
        (["head.weight", "head.weight"], "'head.weight'"),
        (["head.bias", "head.weight"], "'head.*' (2 parameters)"),
        (["a.b.c", "a.b.d", "a.e"], "'a.*' (3 parameters)"),
        (["ab.c", "ad.c"], "'ab.c', 'ad.c'"),
        (["a", "b", "c", "d", "e"], "'a', 'b', 'c' and 2 more"),
    ],
)
def test_describing_many(names, text):
    assert describe(names) == text


def test_names_do_not_outlive_their_owner(model):
    names = Names()
    names.add_module(model)
    gone = weakref.ref(names)
    del names
    gc.collect()
    assert gone() is None
