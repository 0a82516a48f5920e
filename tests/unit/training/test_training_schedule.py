import pytest
import torch

from frostline.training import constant, cosine, one_cycle


def test_constant_rises_linearly_to_one():
    assert [constant(4)(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert constant(0)(0) == 1.0


def test_cosine_rises_falls_and_ends_at_its_final_factor():
    factor = cosine(4, 105)
    assert [factor(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factor(54) == pytest.approx((1 + 0.02) / 2)
    assert factor(104) == factor(1000) == pytest.approx(0.02)
    assert all(factor(step) >= factor(step + 1) for step in range(4, 110))


def test_cosine_shorter_than_its_warm_up_only_rises():
    assert [cosine(10, 5)(step) for step in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


@pytest.mark.parametrize("num_steps", [5, 37, 100])
def test_one_cycle_is_torchs(num_steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=num_steps, cycle_momentum=False)
    factor, ours = one_cycle(num_steps), []
    for step in range(num_steps):
        ours.append((factor(step), optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step() if step < num_steps - 1 else None
    assert [mine for mine, _ in ours] == pytest.approx([theirs for _, theirs in ours], rel=1e-9)
    assert factor(10 * num_steps) == factor(num_steps - 1)


def test_one_cycle_of_a_step_or_two_is_finite():
    assert [one_cycle(1)(0), one_cycle(2)(0), one_cycle(2)(1)] == [1.0, 1.0, 4e-6]
