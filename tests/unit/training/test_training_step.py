from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from training_toy import ALONE

from frostline.errors import StepError
from frostline.training import Loss, Phase, constant, run_step


@dataclass(frozen=True)
class Rows:
    x: Tensor
    y: Tensor

    def to(self, device, non_blocking):
        return self

    def pin_memory(self):
        return self


def rows(*sizes, dtype=torch.float32):
    torch.manual_seed(1)
    return [Rows(torch.randn(size, 6, dtype=dtype), torch.randn(size, 3, dtype=dtype)) for size in sizes]


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8, dtype=dtype), nn.Tanh(), nn.Linear(8, 3, dtype=dtype))


def regression(model, name="fit", weight=None, optimizers=None, loss=None, **options):
    def mean_squared(batch):
        error = F.mse_loss(model(batch.x), batch.y)
        return Loss(error, {"twice": 2 * error})

    return Phase(
        name,
        loss or mean_squared,
        weight or (lambda batch: len(batch.x)),
        optimizers or (torch.optim.SGD(model.parameters(), lr=0.1),),
        schedule=constant(0),
        device=torch.device("cpu"),
        **options,
    )


def joined(batches):
    return Rows(torch.cat([b.x for b in batches]), torch.cat([b.y for b in batches]))


def worst(left, right):
    return max((a - b).abs().max().item() for a, b in zip(left.parameters(), right.parameters(), strict=True))


def test_accumulation_weighted_by_counts_equals_the_big_batch():
    big, small, naive = (network(torch.float64) for _ in range(3))
    batches = rows(1, 5, 2, dtype=torch.float64)
    record = run_step(regression(big), [joined(batches)], ALONE)
    parts = run_step(regression(small), batches, ALONE)
    run_step(regression(naive, weight=lambda batch: 1), batches, ALONE)
    assert worst(big, small) <= 1e-12
    assert worst(big, naive) > 1e-3
    assert parts.loss == pytest.approx(record.loss, rel=1e-6)
    assert parts.terms == {"twice": pytest.approx(2 * record.loss, rel=1e-6)}
    assert parts.gradient_norm == pytest.approx(record.gradient_norm, rel=1e-12)


def test_one_micro_batch_is_the_plain_step_bit_by_bit():
    ours, plain = network(), network()
    (batch,) = rows(5)
    record = run_step(regression(ours), [batch], ALONE)
    loss = F.mse_loss(plain(batch.x), batch.y)
    loss.backward()
    torch.optim.SGD(plain.parameters(), lr=0.1).step()
    assert worst(ours, plain) == 0.0
    assert record.loss == loss.item()
    assert (record.step, record.learning_rate, record.loss_scale, record.skipped) == (1, 0.1, 1.0, False)
    assert all(parameter.grad is None for parameter in ours.parameters())


def test_a_micro_batch_of_weight_zero_is_left_out():
    ours, plain = network(), network()
    full, poisoned = rows(4, 2)
    poisoned.x.fill_(torch.nan)
    phase = regression(ours, weight=lambda batch: float(batch is full))
    run_step(phase, [poisoned, full], ALONE)
    run_step(regression(plain), [full], ALONE)
    assert worst(ours, plain) == 0.0


def test_a_step_of_no_weight_is_refused():
    with pytest.raises(StepError, match="every micro-batch has weight 0\n  where  step 1"):
        run_step(regression(network(), weight=lambda batch: 0), rows(2, 2), ALONE)


@pytest.mark.parametrize("path", ["no_grad", "elsewhere"])
def test_a_step_that_trains_nothing_is_refused(path):
    model, stranger = network(), nn.Parameter(torch.ones(()))

    def cut(batch):
        with torch.no_grad():
            loss = model(batch.x).square().mean()
        return Loss(loss * stranger if path == "elsewhere" else loss, {})

    with pytest.raises(StepError, match="no gradient reached any of its parameters"):
        run_step(regression(model, loss=cut), rows(2), ALONE)


def test_gradients_that_another_phase_left_do_not_enter():
    ours, plain = network(), network()
    ours[0].weight.grad = torch.full_like(ours[0].weight, 1e3)
    run_step(regression(ours), rows(4), ALONE)
    run_step(regression(plain), rows(4), ALONE)
    assert worst(ours, plain) == 0.0


def test_clipping_is_by_the_norm_over_all_optimizers():
    ours, plain = network(), network()
    parts = tuple(torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (ours[0], ours[2]))
    record = run_step(regression(ours, optimizers=parts, clip_norm=0.01), rows(4), ALONE)
    (batch,) = rows(4)
    F.mse_loss(plain(batch.x), batch.y).backward()
    norm = nn.utils.clip_grad_norm_(plain.parameters(), 0.01)
    torch.optim.SGD(plain.parameters(), lr=0.1).step()
    assert worst(ours, plain) == 0.0
    assert record.gradient_norm == norm.item() > 0.01


def test_a_failed_backward_leaves_the_phase_as_it_was():
    model = network()
    phase = regression(model)
    before = [parameter.clone() for parameter in model.parameters()]
    batches = rows(4, 4)
    broken = Rows(batches[1].x, torch.zeros(4, 2))
    with pytest.raises(RuntimeError), pytest.warns(UserWarning):
        run_step(phase, [batches[0], broken], ALONE)
    assert phase.step == 0
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())


def scaled(model, name="fit", **options):
    return regression(model, name, precision="16-mixed", **options)


def exploding(model):
    """An infinite gradient for the last layer alone."""

    def loss(batch):
        hidden = model[1](model[0](batch.x)).float()
        out = F.linear(hidden.detach(), model[2].weight) * torch.inf
        return Loss(hidden.square().mean() + out.sum(), {})

    return loss


def test_an_infinity_in_one_phase_leaves_the_other_phase_s_scale_alone():
    generator, critic = network(), network()
    g, d = scaled(generator, "g"), scaled(critic, "d", loss=exploding(critic))
    before = [parameter.clone() for parameter in critic.parameters()]
    good = run_step(g, rows(4), ALONE)
    bad = run_step(d, rows(4), ALONE)
    assert (good.skipped, bad.skipped) == (False, True)
    assert (g.scaler.get_scale(), d.scaler.get_scale()) == (65536.0, 32768.0)
    assert (d.step, d.num_skipped, g.num_skipped) == (1, 1, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, critic.parameters(), strict=True))


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_an_infinity_in_one_optimizer_skips_all_of_the_phase(clip_norm):
    model = network()
    parts = tuple(torch.optim.AdamW(layer.parameters(), lr=0.1) for layer in (model[0], model[2]))
    phase = scaled(model, optimizers=parts, loss=exploding(model), clip_norm=clip_norm)
    before = [parameter.clone() for parameter in model.parameters()]
    assert run_step(phase, rows(4), ALONE).skipped
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not any(optimizer.state for optimizer in parts)
    assert phase.scaler.get_scale() == 32768.0


def test_two_optimizers_step_at_one_scale_and_the_scaler_is_updated_once(monkeypatch):
    one, two = network(), network()
    parts = tuple(torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (two[0], two[2]))
    single, double = scaled(one), scaled(two, optimizers=parts)
    updates = []
    for phase in (single, double):
        phase.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
        update = phase.scaler.update
        monkeypatch.setattr(phase.scaler, "update", lambda update=update: (updates.append(1), update()))
    for scale in (1024.0, 1024.0, 2048.0, 2048.0):
        (batch,) = rows(4)
        records = [run_step(phase, [batch], ALONE) for phase in (single, double)]
        assert [record.loss_scale for record in records] == [scale, scale]
        assert records[0].gradient_norm == records[1].gradient_norm < 10
    assert worst(one, two) == 0.0
    assert len(updates) == 8


def test_scaling_by_a_power_of_two_changes_no_bit():
    plain, ours = network(), network()
    phase = regression(ours)
    phase.scaler = torch.amp.GradScaler("cpu")  # a scale, and no autocast
    a, b = run_step(regression(plain), rows(4, 3), ALONE), run_step(phase, rows(4, 3), ALONE)
    assert worst(plain, ours) == 0.0
    assert a.gradient_norm == b.gradient_norm


def test_an_optimizer_without_gradients_does_not_stop_the_scaler():
    model = network()
    idle = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    phase = scaled(model, optimizers=(torch.optim.SGD(model.parameters(), lr=0.1), idle))
    assert not run_step(phase, rows(4), ALONE).skipped


def test_bf16_autocast_computes_the_loss_in_bf16():
    model, seen = network(), []

    def loss(batch):
        out = model(batch.x)
        seen.append(out.dtype)
        return Loss(out.float().square().mean(), {})

    run_step(regression(model, loss=loss, precision="bf16-mixed"), rows(4), ALONE)
    run_step(regression(model, loss=loss), rows(4), ALONE)
    assert seen == [torch.bfloat16, torch.float32]
    assert model[0].weight.dtype == torch.float32
