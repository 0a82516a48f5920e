import copy
import gc
import inspect
import io
import pickle
import weakref

import pytest
import torch
from torch import nn

from frostline.errors import StepError
from frostline.regions import find_override, override_


def double(inner, *args, **kwargs):
    return 2 * inner(*args, **kwargs)


def add_one(inner, *args, **kwargs):
    return inner(*args, **kwargs) + 1


def double_own_weight(inner, *args, **kwargs):
    return 2 * inner.__self__.weight.sum()


def linear():
    return nn.Linear(3, 2).requires_grad_(False)


def test_calls_the_function_with_what_was_there_before_and_remove_restores_it():
    module, x = linear(), torch.ones(1, 3)
    plain, names = module(x), set(vars(module))
    handle = override_(module, "forward", double)
    assert torch.equal(module(x), 2 * plain)
    handle.remove()
    handle.remove()
    assert torch.equal(module(x), plain)
    assert set(vars(module)) == names


@pytest.mark.parametrize("inner_first", [True, False])
def test_stacked_overrides_can_be_removed_in_any_order(inner_first):
    module, x = linear(), torch.ones(1, 3)
    plain = module(x)
    inner, outer = override_(module, "forward", double), override_(module, "forward", add_one)
    assert torch.equal(module(x), 2 * plain + 1)
    first, last, between = (inner, outer, plain + 1) if inner_first else (outer, inner, 2 * plain)
    first.remove()
    assert torch.equal(module(x), between)
    last.remove()
    assert "forward" not in vars(module)


def test_an_instance_attribute_that_was_there_before_comes_back():
    module = linear()
    module.forward = earlier = lambda x: x
    handle = override_(module, "forward", double)
    assert torch.equal(module(torch.ones(1)), torch.full((1,), 2.0))
    handle.remove()
    assert module.forward is earlier


def test_refuses_to_remove_what_other_code_replaced():
    module = linear()
    handle = override_(module, "forward", double)
    module.forward = lambda x: x
    with pytest.raises(StepError, match="'forward' of Linear was replaced"):
        handle.remove()


def test_the_model_is_freed_as_soon_as_it_is_deleted():
    module = linear()
    override_(module, "forward", double)
    override_(module, "forward", add_one)
    gone = weakref.ref(module)
    gc.disable()
    try:
        del module
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_overrides_itself_and_not_the_original(duplicate):
    model = nn.Sequential(linear())
    override_(model[0], "forward", double_own_weight)
    override_(model[0], "forward", add_one)
    twin = duplicate(model)
    twin[0].weight.fill_(1.0)
    assert twin(torch.ones(3)) == 2 * 6 + 1
    find_override(twin[0], "forward", add_one).remove()
    assert twin(torch.ones(3)) == 2 * 6
    assert model(torch.ones(3)) != 2 * 6


def test_type_signature_and_state_stay():
    module = linear()
    state, signature = list(module.state_dict()), inspect.signature(module.forward)
    override_(module, "forward", double)
    assert type(module) is nn.Linear
    assert list(module.state_dict()) == state
    assert inspect.signature(module.forward) == signature
    torch.save(module, io.BytesIO())


def test_says_so_when_the_module_is_gone():
    forward = override_(linear(), "forward", double)
    with pytest.raises(StepError, match="whose 'forward' this was is gone"):
        forward(torch.ones(3))
