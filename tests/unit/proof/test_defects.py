"""Ways to save memory that change what is learned, as they are found in the wild: a proof catches each."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from frostline.proof import prove_step

X = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 50, (32,), generator=torch.Generator().manual_seed(1))


def net(*middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.Sequential(nn.Linear(64, 64), *middle, nn.GELU()), nn.Linear(64, 50))


def trained(loss):
    loss.backward()
    return loss


def plain(model):
    return lambda: trained(F.cross_entropy(model(X), LABELS))


def checkpointed(model, **settings):
    def step():
        hidden = checkpoint(model[1], model[0](X), use_reentrant=False, **settings)
        return trained(F.cross_entropy(model[2](hidden), LABELS))

    return step


def test_a_checkpoint_that_restores_the_random_state_is_exact_and_one_that_does_not_is_caught():
    model = net(nn.Dropout(0.3))
    assert prove_step(plain(model), checkpointed(model), model).proof_class == "EXACT"
    report = prove_step(plain(model), checkpointed(model, preserve_rng_state=False), model)
    assert report.proof_class == "BOUNDED"
    assert report.loss_difference == 0.0  # the forward is the same: a loss check does not see it
    assert not report.same_random_state
    assert {d.name for d in report.per_parameter if not d.equal} == {"0.weight", "0.bias", "1.0.weight", "1.0.bias"}


def test_batch_norm_statistics_updated_twice_are_caught_though_every_gradient_is_equal():
    model = net(nn.BatchNorm1d(64))
    report = prove_step(plain(model), checkpointed(model), model)
    assert all(difference.equal for difference in report.per_parameter) and report.loss_difference == 0.0
    assert report.proof_class == "BOUNDED"
    changed = {"1.1.running_mean", "1.1.running_var", "1.1.num_batches_tracked"}
    assert {difference.name for difference in report.buffers if not difference.equal} == changed


def micro_batches(model, labels, divisors):
    def step():
        parts = zip(X.chunk(4), labels.chunk(4), divisors, strict=True)
        losses = (F.cross_entropy(model(x), part, reduction="sum") / divisor for x, part, divisor in parts)
        return sum(trained(loss).detach() for loss in losses)

    return step


def test_a_mean_of_micro_batches_means_is_caught_where_they_hold_different_numbers_of_tokens():
    model, labels = net(), LABELS.clone()
    labels[:7] = labels[30:] = -100  # ignored tokens

    def whole():
        return trained(F.cross_entropy(model(X), labels))

    counts = [int((part != -100).sum()) for part in labels.chunk(4)]
    assert prove_step(whole, micro_batches(model, labels, [sum(counts)] * 4), model).proof_class == "ROUNDING"
    report = prove_step(whole, micro_batches(model, labels, [4 * count for count in counts]), model)
    assert report.proof_class == "BOUNDED"
    assert report.worst is not None and report.worst.max_relative > 0.05


def test_a_write_on_a_saved_tensor_that_autograd_no_longer_sees_is_caught():
    model = net()

    def step(write):
        with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):  # offloading's, say
            hidden = model[1](model[0](X))
            logits = model[2](hidden)
            if write:
                hidden.detach().mul_(0.5)  # its memory is used again before backward
        return trained(F.cross_entropy(logits, LABELS))

    assert prove_step(plain(model), lambda: step(write=False), model).proof_class == "EXACT"
    report = prove_step(plain(model), lambda: step(write=True), model)
    assert report.proof_class == "BOUNDED" and report.loss_difference == 0.0
    assert [difference.name for difference in report.per_parameter if not difference.equal] == ["2.weight"]


def test_autograd_raises_at_a_write_that_it_sees_and_the_model_is_left_as_it_was():
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def step():
        hidden = model[1](model[0](X))
        logits = model[2](hidden)
        hidden.detach().mul_(0.5)
        return trained(F.cross_entropy(logits, LABELS))

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        prove_step(plain(model), step, model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_cross_entropy_in_bfloat16_is_caught():
    model = net()

    def step():
        return trained(F.cross_entropy(model(X).bfloat16(), LABELS).float())

    report = prove_step(plain(model), step, model)
    assert report.proof_class == "BOUNDED"
    assert report.worst is not None and report.worst.max_relative > 1e-3


def test_random_numbers_drawn_besides_are_caught_though_nothing_else_differs():
    model = net()

    def step():
        loss = plain(model)()
        torch.rand(1)
        return loss

    report = prove_step(plain(model), step, model)
    assert report.proof_class == "BOUNDED" and not report.same_random_state
    assert all(difference.equal for difference in report.per_parameter)
