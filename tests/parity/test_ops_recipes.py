"""Recipes instead of saved tensors: the same gradients, fewer bytes, and autograd's promises kept."""

import gc
import weakref

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from frostline.errors import StepError
from frostline.memory import measure
from frostline.ops import Recipes


class Chain(torch.nn.Module):
    """Layers whose activations have recipes, each made from the one before."""

    def __init__(self, treated, depth=4, width=32):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(depth))
        self.treated, self.runs = treated, []

    def part(self, number, x, weight, bias):
        self.runs.append(number)
        return F.linear(x, weight, bias).relu_()

    def forward(self, x):
        with Recipes() as recipes:
            for number, layer in enumerate(self.layers):
                out = F.linear(x, layer.weight, layer.bias)
                if self.treated and number % 2 == 0:
                    recipes.add(out, lambda x, w, b, n=number: self.part(n, x, w, b), x, layer.weight, layer.bias)
                x = out.relu_()
        return x.square().sum()


def gradients(model, x, *, autocast=None):
    model.zero_grad()
    with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        loss = model(x)
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
def test_gradients_are_equal_bit_by_bit(autocast):
    x = torch.randn(8, 32)
    treated = Chain(True)
    for a, b in zip(
        gradients(treated, x, autocast=autocast), gradients(Chain(False), x, autocast=autocast), strict=True
    ):
        assert torch.equal(a, b)
    assert sorted(treated.runs) == [0, 2]  # each once, though ReLU and the next layer both saved it


def test_the_peak_falls():
    x, peaks = torch.randn(2048, 32), []
    for treated in (False, True):
        model = Chain(treated, depth=8)
        report = measure(lambda model=model: model(x).backward(), model, inputs=x)
        peaks.append(report.peak_bytes - report.resident_bytes)
    assert peaks[1] <= peaks[0] - 3 * x.nbytes


def test_without_gradients_and_inside_a_checkpoint_it_steps_back():
    x, model = torch.randn(8, 32), Chain(True)
    with torch.no_grad():
        model(x)
    checkpoint(model, x, use_reentrant=False).backward()
    assert model.runs == []
    for a, b in zip(model.parameters(), gradients(Chain(False), x), strict=True):
        assert torch.equal(a.grad, b)


def test_outer_hooks_get_what_is_kept():
    x, packed = torch.randn(8, 32), []

    def pack(tensor):
        packed.append(tensor.shape)
        return tensor.detach().clone()

    model = Chain(True)
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(x)
    loss.backward()
    assert packed
    for a, b in zip(model.parameters(), gradients(Chain(False), x), strict=True):
        assert torch.equal(a.grad, b)


def test_a_view_of_what_is_made_again():
    x, weight = torch.randn(8, 6, requires_grad=True), torch.randn(8, 3, requires_grad=True)
    with Recipes() as recipes:
        out = x * 2
        recipes.add(out, lambda x: x * 2, x)
        loss = (out.t()[1:4].t() * weight).sum()
        del out
    loss.backward()
    assert torch.equal(weight.grad, (x.detach() * 2)[:, 1:4])


@pytest.mark.parametrize("changed", ["dropped", "argument"])
def test_changes_in_place_before_backward_raise(changed):
    x = torch.randn(8, 32, requires_grad=True)
    with Recipes() as recipes:
        inner = x * 1
        out = inner * 2
        recipes.add(out, lambda inner: inner * 2, inner)
        loss = out.square().sum()
    with torch.no_grad():
        (out if changed == "dropped" else inner).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_recipe_that_makes_something_else_is_an_error():
    x = torch.randn(8, 32, requires_grad=True)
    with Recipes() as recipes:
        out = x * 2
        recipes.add(out, lambda x: x[:4] * 2, x)
        loss = out.square().sum()
    with pytest.raises(StepError, match=r"a recipe made a tensor of shape \(4, 32\)"):
        loss.backward()


def test_a_new_tensor_at_an_old_address_has_no_recipe():
    with Recipes() as recipes:
        for _ in range(50):
            out = torch.randn(64)
            recipes.add(out, torch.zeros_like, out.clone())
            del out
            weight = torch.randn(64, requires_grad=True)
            fresh = torch.ones(64) * 3
            loss = (weight * fresh).sum()
            del fresh
            loss.backward()
            assert torch.equal(weight.grad, torch.full((64,), 3.0))


def test_nothing_is_left_after_backward():
    x = torch.randn(8, 32)
    model = Chain(True)
    model(x).backward()
    kept = weakref.ref(x.untyped_storage())
    del x
    gc.collect()
    assert kept() is None
