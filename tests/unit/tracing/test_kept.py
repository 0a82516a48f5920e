import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from frostline.tracing import fake_tensors, graph_of, kept_by, leaves_under, nodes_above


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x, 2 * x)
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.LayerNorm(36), nn.Linear(36, 5)]
    return nn.Sequential(*layers, nn.GELU(), nn.Linear(5, 2))


def num_bytes(storages):
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("is_fake", [False, True])
def test_a_graph_keeps_what_autograd_packed(is_fake):
    packed = {}

    def pack(tensor):
        packed[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with fake_tensors() if is_fake else torch.enable_grad():
        model, x = network(), torch.randn(2, 3, 8, 8)
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            model(x)
        kept = kept_by(nodes_above([graph_of(model(x))]))
        assert num_bytes(kept) == num_bytes(packed) > 0


def test_own_functions_keep_what_they_saved():
    x = torch.randn(10, requires_grad=True)
    assert num_bytes(kept_by(nodes_above([graph_of(Doubled.apply(x))]))) == 80


def test_a_graph_that_went_backward_keeps_nothing():
    y = network()(torch.randn(2, 3, 8, 8)).sum()
    nodes = nodes_above([graph_of(y)])
    assert kept_by(nodes)
    y.backward()
    assert kept_by(nodes) == {}


def test_what_a_checkpoint_recomputes_is_not_kept_and_is_not_recomputed():
    calls = []

    def run(x):
        calls.append(x)
        return (2 * x).sin().exp()

    y = checkpoint(run, torch.randn(10, requires_grad=True), use_reentrant=False)
    assert num_bytes(kept_by(nodes_above([graph_of(y)]))) <= 8 and len(calls) == 1  # the 2, which no hook sees


def test_nodes_and_leaves_of_one_branch_alone():
    first, second, shared = (nn.Linear(3, 3) for _ in range(3))
    x = shared(torch.randn(2, 3))
    live = nodes_above([graph_of(first(x))])
    dead = nodes_above([graph_of(second(x)), None], but=live)
    assert dead.isdisjoint(live)
    # The transposed weight is a node of its own; the bias goes straight into the sum.
    assert {id(leaf) for leaf in leaves_under(dead)} == {id(second.weight), id(second.bias)}
