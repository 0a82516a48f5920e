import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from frostline.tracing import has_no_derivative
from frostline.tracing.operators import (
    READ_ONLY,
    draws_random_numbers,
    event_kind,
    factor_of,
    is_in_place,
    is_over_one_element,
    is_sum,
    keeps_needless_input,
    name_of,
)

X = torch.arange(1.0, 5.0)


FLAT = {
    **{name: getattr(torch, name) for name in "round floor ceil trunc sign sgn argmax argmin isnan isfinite".split()},
    **{name: getattr(Tensor, name) for name in "long int bool".split()},
    **{name: lambda x, name=name: getattr(torch, name)(x, torch.ones(4)) for name in ("eq", "lt", "greater_equal")},
    "one_hot": lambda x: F.one_hot(x.long()),
    "searchsorted": lambda x: torch.searchsorted(torch.ones(4), x.detach()),
    "bernoulli": lambda x: torch.bernoulli(x / 5),
}


@pytest.mark.parametrize("name", FLAT)
def test_operators_without_derivative(name):
    x = X.clone().requires_grad_()
    out = FLAT[name](x)
    if out.requires_grad:  # then torch says that the derivative is 0
        assert not torch.autograd.grad(out.sum(), x)[0].any()
    assert has_no_derivative(f"Tensor.{name}") and has_no_derivative(name)


@pytest.mark.parametrize(
    "name", ["mul", "relu", "abs", "clamp", "sort", "to", "float", "softmax", "max", "norm", "remainder"]
)
def test_operators_with_one(name):
    assert not has_no_derivative(f"Tensor.{name}")


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (Tensor.add_, True),
        (Tensor.copy_, True),
        (Tensor.__setitem__, True),
        (Tensor.__iadd__, True),
        (Tensor.data.__set__, True),
        (torch.relu_, True),
        (torch._foreach_add_, True),
        (Tensor.requires_grad_, False),
        (Tensor.__init__, False),
        (Tensor.add, False),
        (Tensor.__add__, False),
        (Tensor.grad.__set__, False),
    ],
)
def test_writing_in_place_shows_in_the_name(function, expected):
    assert is_in_place(function) is expected


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (Tensor.detach, "detach"),
        (torch.detach, "detach"),
        (Tensor.data.__get__, "data"),
        (torch.tensor, "rewrap"),
        (torch.asarray, "rewrap"),
        (Tensor.new_tensor, "rewrap"),
        (torch.autograd.grad, "gradient"),
        (torch.mul, "op"),
    ],
)
def test_kinds(function, kind):
    assert event_kind(function) == kind


@pytest.mark.parametrize(
    ("function", "args", "factor"),
    [
        (Tensor.mul, (X, 3), 3.0),
        (torch.mul, (2, X), 2.0),
        (Tensor.__rmul__, (X, 0.5), 0.5),
        (Tensor.div, (X, 4), 0.25),
        (torch.div, (X, 4), 0.25),
        (Tensor.mul, (X, 0), 0.0),
        (Tensor.mul, (X, X), None),
        (Tensor.add, (X, 3), None),
        (Tensor.div, (X, X), None),
    ],
)
def test_factors(function, args, factor):
    assert factor_of(function, args) == factor


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [
        (torch.rand, (3,), {}),
        (torch.randn_like, (X,), {}),
        (torch.randperm, (5,), {}),
        (Tensor.normal_, (X.clone(),), {}),
        (Tensor.bernoulli_, (X.clone(),), {"p": 0.5}),
        (torch.multinomial, (X, 2), {}),
        (F.dropout, (X,), {}),
        (F.dropout, (X, 0.5, True), {}),
        (F.dropout, (X,), {"p": 0.5, "training": True}),
        (F.gumbel_softmax, (X,), {}),
        (torch.dropout, (X, 0.5, True), {}),
        (F.alpha_dropout, (X,), {"training": True}),
        (F.scaled_dot_product_attention, (X.view(1, 2, 2),) * 3, {"dropout_p": 0.5}),
        (F.dropout, (X, 0.5, False), {}),
        (F.dropout, (X,), {"p": 0.0}),
        (F.dropout, (X,), {"training": False}),
        (F.scaled_dot_product_attention, (X.view(1, 2, 2),) * 3, {}),
        (torch.mul, (X, X), {}),
        (torch.zeros, (3,), {}),
    ],
)
def test_what_is_said_to_draw_moves_the_generator(function, args, kwargs):
    before = torch.get_rng_state()
    function(*args, **kwargs)
    moved = not torch.equal(before, torch.get_rng_state())
    assert draws_random_numbers(function, args, kwargs) == moved


def test_frozen_operators_that_keep_inputs_for_nothing():
    x = torch.randn(1, 2, 4, 4, requires_grad=True)
    frozen, trained = torch.randn(3, 2, 1, 1), torch.randn(3, 2, 1, 1, requires_grad=True)
    assert keeps_needless_input(F.conv2d, (x, frozen), {})
    assert keeps_needless_input(torch.conv2d, (x,), {"weight": frozen})
    assert not keeps_needless_input(F.conv2d, (x, trained), {})
    assert not keeps_needless_input(F.conv2d, (x.detach(), frozen), {})
    statistics = (torch.zeros(2), torch.ones(2))
    assert keeps_needless_input(F.batch_norm, (x, *statistics, torch.ones(2), torch.zeros(2), False), {})
    assert keeps_needless_input(F.batch_norm, (x, *statistics), {})
    assert not keeps_needless_input(F.batch_norm, (x, *statistics, torch.ones(2), None, True), {})
    assert not keeps_needless_input(F.batch_norm, (x, *statistics), {"weight": torch.ones(2, requires_grad=True)})
    assert not keeps_needless_input(F.linear, (x, frozen), {})


def test_softmax_over_one_element():
    column = torch.randn(4, 1)
    assert is_over_one_element(F.softmax, (column,), {"dim": 1})
    assert is_over_one_element(torch.log_softmax, (column, -1), {})
    assert is_over_one_element(F.cross_entropy, (column, torch.zeros(4, dtype=torch.long)), {})
    assert not is_over_one_element(F.softmax, (column,), {"dim": 0})
    assert not is_over_one_element(F.cross_entropy, (torch.randn(4, 2), torch.zeros(4, dtype=torch.long)), {})
    assert not is_over_one_element(torch.sigmoid, (column,), {})
    assert not is_over_one_element(F.softmax, (torch.tensor(1.0),), {"dim": 0})


def test_sums():
    assert is_sum(Tensor.sum, {}) and is_sum(torch.sum, {}) and is_sum(F.mse_loss, {"reduction": "sum"})
    assert not is_sum(F.mse_loss, {}) and not is_sum(torch.mean, {})


def test_names_are_those_programs_write():
    assert name_of(torch.mul) == "mul"
    assert name_of(Tensor.mul) == "Tensor.mul"
    assert name_of(F.softmax) == "nn.functional.softmax"
    assert name_of(torch.linalg.norm) == "linalg.norm"


def test_looking_at_a_tensor_is_read_only():
    x = torch.ones(3, requires_grad=True)
    for function in READ_ONLY:
        assert not is_in_place(function), function
    assert Tensor.shape.__get__ in READ_ONLY and Tensor.size in READ_ONLY and Tensor.mul not in READ_ONLY
    assert x.grad is None
