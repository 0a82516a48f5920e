"""Two processes train the same vector as one with the whole batch."""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from frostline.systems.ti.system import TiSystem
from frostline.training import Group, run_step
from ti_parts import ALONE, small_config, write_model
from two_processes import results_of_both

STEPS = 5
# Adam divides by the gradient's own size: where that is nearly nothing, rounding moves a coordinate by a share of the
# learning rate, whatever the number of processes.
SLOW = {"learning_rate": 0.005, "num_steps": 100}
CASES = {
    "plain": {"training": SLOW},
    "accumulated": {"training": {"gradient_accumulation_steps": 3, **SLOW}},
    "two concepts": {
        "data": {"concept": ("star", "moon")},
        "concept": {"placeholder": ("<a>", "<b>")},
        "training": SLOW,
    },
    "before T5": {"concept": {"space": "t5-input"}, "training": SLOW},
    "stored weights": {"training": {"precision": "bf16-mixed"}, "memory": {"bfloat16_weights": True}},
}


def trained(directory, case, group, out):
    """The vectors after some steps of the real system, and each step's loss."""
    system = TiSystem(small_config(directory, **CASES[case]), group, directory=out)
    system.fill_cache(lambda done, total: None)
    system.release_upstream_()
    batches = system.batches().iterate(0)
    losses = [run_step(system.phases[0], next(batches), group).loss for _ in range(STEPS)]
    batches.close()
    return torch.cat([concept.vectors.detach().flatten() for concept in system.concepts]), losses


def child(directory, out):
    group = Group.open("cpu")
    found = {case: trained(directory, case, group, Path(out) / case) for case in CASES}
    torch.save(found, Path(out) / f"{group.rank}.pt")
    group.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def results(model, tmp_path_factory):
    return results_of_both(__file__, tmp_path_factory.mktemp("two"), model)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one_with_the_whole_batch(results, model, tmp_path, case):
    alone, losses = trained(model, case, ALONE, tmp_path)
    (first, first_losses), (second, second_losses) = (result[case] for result in results)
    assert torch.equal(first, second), "both processes hold the same vectors"
    tolerance = 2e-3 if case == "stored weights" else 1e-6  # bfloat16 rounds, and Adam divides by little
    assert (first - alone).abs().max().item() <= tolerance
    assert first_losses == second_losses == pytest.approx(losses, abs=max(1e-5, tolerance))
    start = TiSystem(small_config(model, **CASES[case]), ALONE).concepts
    moved = alone - torch.cat([concept.vectors.detach().flatten() for concept in start])
    assert moved.abs().max().item() > 0.01, "there was something to learn"


if __name__ == "__main__":
    child(sys.argv[1], sys.argv[2])
