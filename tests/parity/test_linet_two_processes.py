"""Two processes: with running statistics they are one with the whole batch; in training mode each has its own."""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from frostline.systems.linet.batches import Batch
from frostline.systems.linet.layers import synchronise_
from frostline.systems.linet.system import network_loss
from frostline.systems.linet.treatment import Treatment
from frostline.training import Group, Phase, constant, run_step
from linet_parts import missing, samples, small_net
from two_processes import results_of_both

MODES = ("eval", "train", "together")
STEPS, TREATMENT = 4, Treatment(recompute="outputs", stem_slices=2)
SOME = missing("11 01 11 11 10 10 10 10")  # the last four have no depth


def batch(number, rows=slice(None)):
    images, labels = samples(8, seed=number)
    return Batch(tuple(image[rows] for image in images), labels[rows], SOME[rows])


def network(mode):
    """A network with running statistics that are not neutral."""
    model = small_net()
    model.treatment = TREATMENT
    with torch.no_grad():
        for number in range(3):
            model(batch(10 + number).streams)
    synchronise_(model, mode == "together")
    return model.train(mode != "eval")


def ours(group, mode, rows=slice(None)):
    """Steps on our engine; parameters afterwards."""
    model = network(mode)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    phase = Phase(
        "network", lambda b: network_loss(model, b), len, (optimizer,), schedule=constant(0), device=group.device
    )
    losses = [run_step(phase, (batch(number, rows),), group).loss for number in range(STEPS)]
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}, losses


def users(mode, rows):
    """Steps under a user's DistributedDataParallel, as it comes."""
    model = network(mode)
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for number in range(STEPS):
        part = batch(number, rows)
        optimizer.zero_grad()
        F.cross_entropy(wrapped(part.streams, part.availability), part.labels).backward()
        optimizer.step()
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def child(directory):
    group = Group.open("cpu")
    rows = slice(4 * group.rank, 4 * group.rank + 4)
    found = {f"ours {mode}": ours(group, mode, rows) for mode in MODES}
    found |= {f"users {mode}": users(mode, rows) for mode in MODES}
    torch.save(found, Path(directory) / f"{group.rank}.pt")
    group.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return results_of_both(__file__, tmp_path_factory.mktemp("two"))


def farthest(mine, other):
    return max(
        (mine[name] - other[name]).abs().max().item()
        for name in mine
        if mine[name].is_floating_point() and mine[name].numel()
    )


def test_with_running_statistics_two_are_one(results):
    expected, losses = ours(Group(torch.device("cpu")), "eval")
    for rank in (0, 1):
        state, found = results[rank]["ours eval"]
        assert farthest(state, expected) <= 1e-9
        assert found == pytest.approx(losses, abs=1e-6)
        assert farthest(results[rank]["users eval"], expected) <= 1e-9


def test_with_statistics_of_all_processes_two_are_one(results):
    """Also where one process has a sample or none of a stream."""
    expected, losses = ours(Group(torch.device("cpu")), "train")
    for rank in (0, 1):
        state, found = results[rank]["ours together"]
        assert farthest(state, expected) <= 1e-9
        assert found == pytest.approx(losses, abs=1e-6)
        assert farthest(results[rank]["users together"], expected) <= 1e-9


def test_in_training_mode_every_process_has_its_own_statistics(results):
    """Both learn the same weights, from statistics of their own samples: that is not the whole batch's step."""
    (first, _), (second, _) = (results[rank]["ours train"] for rank in (0, 1))
    weights = [name for name in first if "running" not in name and "tracked" not in name]
    assert all(torch.equal(first[name], second[name]) for name in weights)
    assert not torch.equal(first["bn1.stream1_running_mean"], second["bn1.stream1_running_mean"])
    expected, _ = ours(Group(torch.device("cpu")), "train")
    assert farthest({name: first[name] for name in weights}, expected) > 1e-5


def test_a_users_wrapper_makes_every_step_in_training_mode(results):
    first, second = (results[rank]["users train"] for rank in (0, 1))
    assert int(first["bn1.num_batches_tracked"]) == 3 + STEPS
    assert all(torch.equal(first[name], second[name]) for name in first if "running" not in name)


if __name__ == "__main__":
    child(sys.argv[1])
