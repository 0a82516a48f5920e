import gc
import weakref

import torch
from torch import nn

from frostline.tracing import Leaf, Leaves
from frostline.tracing.leaves import is_recomputing


def numbered(*tensors):
    leaves = Leaves()
    for tensor in tensors:
        leaves.add(tensor)
    return leaves


def test_numbers_are_given_once():
    a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    leaves = numbered(a, b)
    assert (leaves.number(a), leaves.number(b), leaves.number(torch.ones(1))) == (0, 1, -1)
    assert leaves.add(a, Leaf(a, hidden=True)) == 0
    assert not leaves.all[0].hidden
    assert [leaf.tensor is tensor for leaf, tensor in zip(leaves.all, (a, b), strict=True)] == [True, True]


def test_members_of_a_set():
    leaves = Leaves()
    assert list(leaves.members(0)) == []
    assert list(leaves.members(0b10110)) == [1, 2, 4]
    assert list(leaves.members(1 << 1000)) == [1000]


def test_reach_follows_the_graph_and_nothing_else():
    a, b, c = (torch.ones(2, requires_grad=True) for _ in range(3))
    leaves = numbered(a, b, c)
    h = a * b
    assert leaves.reach(h) == 0b11
    assert leaves.reach(h + c) == 0b111
    assert leaves.reach(h.detach() + c) == 0b100
    assert leaves.reach(a) == 0b1
    assert leaves.reach(torch.ones(2)) == 0
    assert leaves.reach(torch.ones(2, requires_grad=True)) == 0  # nobody numbered it
    assert leaves.all[-1].tensor is c


def test_a_leaf_deep_in_a_graph_is_found_and_says_through_what():
    a = torch.ones(2, requires_grad=True)
    out = (a * 2).exp()
    leaves = Leaves()
    assert leaves.reach(out) == 1
    assert leaves.all[0].tensor is a and leaves.all[0].hidden and leaves.all[0].through() is out


def test_a_graph_too_deep_for_recursion():
    a = torch.ones(1, requires_grad=True)
    out = a
    for _ in range(20_000):
        out = out + 1
    leaves = numbered(a)
    assert leaves.reach(out) == 1
    leaves.forget(out)
    assert out.grad_fn.metadata == {}


def test_a_diamond_of_many_floors_is_walked_once():
    a = torch.ones(1, requires_grad=True)
    out = a
    for _ in range(200):  # 2**200 paths
        out = out + out.neg()
    leaves = numbered(a)
    assert leaves.reach(out) == 1


def test_a_graph_that_goes_is_not_held_and_notes_of_one_that_stays_can_be_taken_away():
    a = nn.Parameter(torch.ones(2))
    leaves = numbered(a)
    middle = a * 2
    out = middle.exp()
    gone = weakref.ref(middle)
    assert leaves.reach(out) == 1
    leaves.forget(out)
    assert out.grad_fn.metadata == {} and middle.grad_fn.metadata == {}
    del middle, out
    gc.collect()
    assert gone() is None


def test_two_numberings_do_not_mix():
    a, b = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    first, second = numbered(a, b), numbered(b, a)
    out = a * 2
    assert (first.reach(out), second.reach(out)) == (0b01, 0b10)


def test_frozen_tensors_and_gradients_switched_off_reach_nothing():
    a = nn.Parameter(torch.ones(2), requires_grad=False)
    b = torch.ones(2, requires_grad=True)
    leaves = numbered(a, b)
    assert leaves.reach(a * 2) == leaves.reach(a) == 0
    with torch.no_grad():
        assert leaves.reach(b * 2) == 0


def test_a_custom_function_and_an_undefined_input_are_passed():
    class Add(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, y, z):
            return x + y

        @staticmethod
        def backward(ctx, gradient):
            return gradient, gradient, None

    a, b = torch.ones(2, requires_grad=True), torch.ones(2)
    leaves = numbered(a)
    out = Add.apply(a, b, 3)
    assert leaves.reach(out) == 1
    leaves.forget(out)
    assert out.grad_fn.metadata == {}


def test_a_view_whose_graph_cannot_be_asked_for():
    a = torch.ones(2, requires_grad=True)
    base = torch.zeros(2, 2)
    with torch.no_grad():
        view = base[0]
    base.add_(a)
    leaves = numbered(a)
    assert leaves.reach(base) == 1
    assert leaves.reach(view) in (0, 1)


def test_recomputing_is_inside_backward():
    seen = []
    a = torch.ones(1, requires_grad=True)
    out = a * 2
    out.register_hook(lambda _: seen.append(is_recomputing()))
    assert not is_recomputing()
    out.backward()
    assert seen == [True] and not is_recomputing()
