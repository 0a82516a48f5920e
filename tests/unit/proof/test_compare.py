import math

import pytest
import torch
from torch import nn

from frostline.errors import StepError
from frostline.proof import compare_gradients, gradients_of, noise_floor

EPS = torch.finfo(torch.float32).eps
PLAIN = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([[3.0]])}


def shifted(relative):
    return {**PLAIN, "a": torch.tensor([1.0, -2.0]) * (1 + relative)}


def test_bitwise_equal_gradients_are_exact():
    report = compare_gradients(PLAIN, {name: gradient.clone() for name, gradient in PLAIN.items()})
    assert report.proof_class == "EXACT" and [d.name for d in report.per_parameter] == ["a", "b"]
    assert report.worst.max_relative == 0.0 and report.worst.cosine == 1.0


@pytest.mark.parametrize(
    ("relative", "floor", "expected"),
    [
        (7e-6, 1e-6, "ROUNDING"),
        (9e-6, 1e-6, "BOUNDED"),
        (16 * EPS, None, "ROUNDING"),
        (64 * EPS, None, "BOUNDED"),
    ],
)
def test_rounding_is_eight_noise_floors(relative, floor, expected):
    report = compare_gradients(PLAIN, shifted(relative), floor=floor)
    assert report.proof_class == expected and report.noise_floor == floor
    assert report.worst.name == "a" and report.worst.max_relative == pytest.approx(relative, rel=0.1)


@pytest.mark.parametrize("floor", [None, 1e6])
@pytest.mark.parametrize(
    "treated",
    [
        {"a": PLAIN["a"]},
        {"a": PLAIN["a"], "b": None},
        {"a": PLAIN["a"], "b": torch.zeros(2)},
        {"a": PLAIN["a"], "b": torch.tensor([[math.nan]])},
    ],
)
def test_a_missing_misshapen_or_broken_gradient_is_never_rounding(treated, floor):
    report = compare_gradients(PLAIN, treated, floor=floor)
    assert report.proof_class == "BOUNDED" and report.worst.name == "b" and math.isinf(report.worst.max_relative)


def test_a_gradient_where_there_was_zero_is_infinitely_wrong():
    zero, one = {"a": torch.zeros(2)}, {"a": torch.ones(2)}
    assert math.isinf(compare_gradients(zero, one).worst.max_relative)
    assert compare_gradients(one, zero).worst.cosine == 0.0


def test_where_no_gradient_is_there_is_nothing_to_prove():
    assert compare_gradients({}, {}).proof_class == "none"
    assert compare_gradients({"a": None}, {"a": None}).proof_class == "none"


def test_a_parameter_without_gradient_in_both_does_not_weaken_the_class():
    report = compare_gradients({**PLAIN, "c": None}, {**PLAIN, "c": None})
    assert report.proof_class == "EXACT"


def test_another_type_is_not_exact():
    halves = {"a": torch.tensor([1.0])}, {"a": torch.tensor([1.0], dtype=torch.bfloat16)}
    assert compare_gradients(*halves).proof_class == "ROUNDING"


def test_sparse_and_complex_gradients_are_compared_by_value():
    embedding = nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1, 3])).sum().backward()
    gradients = {**gradients_of(embedding), "z": torch.tensor([1 + 2j])}
    assert compare_gradients(gradients, gradients).proof_class == "EXACT"
    assert compare_gradients(gradients, {**gradients, "z": torch.tensor([1 - 2j])}).proof_class == "BOUNDED"


def test_gradients_are_copied_and_tied_ones_listed_once():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "frozen": nn.Linear(1, 1)})
    model["b"].weight = model["a"].weight
    model["frozen"].requires_grad_(False)
    model["a"](torch.ones(1, 2)).sum().backward()
    gradients = gradients_of(model)
    model["a"].weight.grad.zero_()
    assert list(gradients) == ["a.weight", "a.bias", "b.bias"]
    assert gradients["b.bias"] is None and torch.equal(gradients["a.weight"], torch.ones(2, 2))


def test_the_noise_floor_is_the_largest_relative_rounding():
    exact = {"a": torch.tensor([1.0, 4.0], dtype=torch.float64)}
    assert noise_floor({"a": torch.tensor([1.0, 4.0 + 4e-6])}, exact) == pytest.approx(1e-6, rel=0.1)


def test_a_reference_that_does_not_fit_gives_no_floor():
    with pytest.raises(StepError, match="'b' cannot be compared with its fp64 reference"):
        noise_floor(PLAIN, {"a": PLAIN["a"].double()})
