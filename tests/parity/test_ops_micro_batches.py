from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from frostline.errors import ConfigError, ShapeError, StepError
from frostline.memory import measure
from frostline.ops import backward_in_micro_batches, checkpoint_, chunked_cross_entropy
from frostline.proof import compare_gradients, gradients_of, noise_floor
from small_transformer import build


def problem(dtype=torch.float64, num_samples=7, *, ignored=True, **settings):
    model, _, _ = build(dtype, frozen=False, **settings)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(num_samples, 5, 8, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(50, (num_samples, 5), generator=generator)
    if ignored:
        labels[0] = -100  # a whole sample
        labels[3:, ::2] = -100
    return model, {"x": x, "labels": labels}


def token_losses(model, *, reduction="sum", autocast=False):
    def loss(batch):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(batch["x"])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, 1)
        return F.cross_entropy(logits, batch["labels"].flatten(), reduction=reduction)

    return loss


def num_tokens(batch):
    return (batch["labels"] != -100).sum()


def plain(model, batch, *, autocast=False):
    model.zero_grad()
    loss = token_losses(model, reduction="mean", autocast=autocast)(batch)
    loss.backward()
    return loss.detach(), gradients_of(model)


def micro(model, batch, size, *, loss=None, **arguments):
    model.zero_grad()
    value = backward_in_micro_batches(
        loss or token_losses(model), batch, micro_batch_size=size, count=num_tokens, **arguments
    )
    return value, gradients_of(model)


def assert_close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual[0], expected[0], rtol=tolerance, atol=tolerance)
    report = compare_gradients(expected[1], actual[1])
    assert report.worst.max_relative < tolerance, report.worst


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_the_gradient_is_the_whole_batch_s_with_ignored_tokens_and_a_short_last_part(size, reduction):
    model, batch = problem()
    value, gradients = micro(model, batch, size, loss=token_losses(model, reduction=reduction))
    assert not value.requires_grad
    assert_close((value, gradients), plain(model, batch))


def test_the_mean_of_means_would_be_another_gradient():
    model, batch = problem()
    _, expected = plain(model, batch)
    model.zero_grad()
    for rows in (slice(0, 3), slice(3, 7)):
        part = {key: tensor[rows] for key, tensor in batch.items()}
        (token_losses(model, reduction="mean")(part) / 2).backward()
    assert compare_gradients(expected, gradients_of(model)).worst.max_relative > 0.01


@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_sizes_and_any_ignored_tokens(data):
    num_samples = data.draw(st.integers(1, 9))
    model, batch = problem(num_samples=num_samples, ignored=False, num_layers=1)
    keep = data.draw(st.lists(st.booleans(), min_size=5 * num_samples, max_size=5 * num_samples))
    batch["labels"][~torch.tensor(keep).view(num_samples, 5)] = -100
    if not any(keep):
        batch["labels"][0, 0] = 1
    assert_close(micro(model, batch, data.draw(st.integers(1, 10))), plain(model, batch))


def test_float32_is_within_rounding_of_the_plain_step():
    model, batch = problem(torch.float32)
    _, expected = plain(model, batch)
    _, gradients = micro(model, batch, 2)
    reference, double = problem()
    reference.load_state_dict(model.state_dict())
    double["x"] = batch["x"].double()
    floor = noise_floor(expected, plain(reference, double)[1])
    assert compare_gradients(expected, gradients, floor=floor).proof_class in ("EXACT", "ROUNDING")


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision(autocast):
    model, batch = problem(torch.float32 if autocast else torch.bfloat16)
    expected = plain(model, batch, autocast=autocast)
    value, gradients = micro(model, batch, 2, loss=token_losses(model, autocast=autocast))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected[0].float(), rtol=1e-2, atol=1e-2)
    for name, gradient in expected[1].items():
        difference = (gradients[name].double() - gradient.double()).norm()
        assert difference <= 4 * 2**-8 * gradient.double().norm() + 1e-8


def test_a_scaler_scales_every_part_alike_and_steps_once():
    model, batch = problem(torch.float32)
    expected = plain(model, batch)[1]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    value, gradients = micro(model, batch, 2, scaler=scaler)
    assert value < 10  # not scaled
    scaled = {name: gradient / 2**10 for name, gradient in gradients.items()}
    assert compare_gradients(expected, scaled).worst.max_relative < 1e-5
    before = model.head.weight.detach().clone()
    scaler.step(optimizer)
    scaler.update()
    torch.testing.assert_close(model.head.weight, before - 0.1 * expected["head.weight"], rtol=1e-5, atol=1e-6)


def test_a_count_from_the_loss_is_compared():
    model, batch = problem()

    def loss(part):
        return token_losses(model)(part), num_tokens(part)

    assert_close(micro(model, batch, 2, loss=loss), plain(model, batch))
    with pytest.raises(StepError, match=r"the micro-batches count 7, count\(batch\) says 18(.|\n)*discard"):
        micro(model, batch, 2, loss=lambda part: (token_losses(model)(part), len(part["x"])))


def test_class_weights_count_as_their_sum():
    model, batch = problem()
    weight = torch.rand(50, dtype=torch.float64)

    def loss(reduction):
        return lambda part: F.cross_entropy(
            model(part["x"]).flatten(0, 1), part["labels"].flatten(), weight=weight, reduction=reduction
        )

    def total(part):
        counts = part["labels"] != -100
        return weight[part["labels"][counts]].sum()

    model.zero_grad()
    expected = loss("mean")(batch)
    expected.backward()
    reference = expected.detach(), gradients_of(model)
    model.zero_grad()
    value = backward_in_micro_batches(loss("sum"), batch, micro_batch_size=3, count=total)
    assert_close((value, gradients_of(model)), reference)


def test_together_with_checkpointing_the_chunked_loss_and_earlier_gradients():
    model, batch = problem()
    value, expected = plain(model, batch)

    def loss(part):
        features = model.front(part["x"])
        for block in model.blocks:
            features = block(features)
        return chunked_cross_entropy(
            model.norm(features), model.head.weight, part["labels"], bias=model.head.bias, reduction="sum"
        )

    checkpoint_(model, ["blocks.*"])
    model.zero_grad()
    for _ in range(2):
        backward_in_micro_batches(loss, batch, micro_batch_size=2, count=num_tokens)
    doubled = {name: 2 * gradient for name, gradient in expected.items()}
    assert_close((value, gradients_of(model)), (value, doubled))


def test_a_compiled_loss():
    model, batch = problem()
    compiled = torch.compile(token_losses(model), backend="eager", fullgraph=True)
    assert_close(micro(model, batch, 3, loss=compiled), plain(model, batch))
    torch._dynamo.reset()


def test_dropout_draws_other_masks_and_the_same_in_distribution():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 1)), torch.randn(8, 6)

    def gradients(size, num_draws):
        torch.manual_seed(0)
        for _ in range(num_draws):
            net.zero_grad()
            backward_in_micro_batches(net, x, micro_batch_size=size, count=len)
            yield net[3].weight.grad.clone()

    whole, parts = (torch.cat(list(gradients(size, 300))) for size in (8, 3))
    assert not torch.allclose(whole[0], parts[0])
    error = (whole.var(0) + parts.var(0)).div(300).sqrt()
    assert ((whole.mean(0) - parts.mean(0)).abs() < 4 * error).all()


def test_where_nothing_counts_the_loss_is_nan_and_gradients_are_zero_like_torch():
    model, batch = problem()
    batch["labels"][:] = -100
    value, gradients = micro(model, batch, 2)
    assert value.isnan()
    assert plain(model, batch)[0].isnan()
    assert all(gradient.eq(0).all() for gradient in gradients.values())


class Pair(NamedTuple):
    x: torch.Tensor
    extra: object


def test_batches_of_any_nesting_are_split_along_the_samples():
    seen = []
    weight = torch.ones(1, requires_grad=True)

    def loss(batch):
        seen.append(batch)
        return batch["pair"].x.sum() * weight

    batch = {
        "pair": Pair(torch.arange(5.0), [torch.arange(10).view(5, 2)]),
        "names": ["a", "b", "c", "d", "e"],
        "temperature": torch.tensor(2.0),
        "mode": "train",
        "nothing": None,
    }
    backward_in_micro_batches(loss, batch, micro_batch_size=2, count=lambda batch: 5)
    assert [part["names"] for part in seen] == [["a", "b"], ["c", "d"], ["e"]]
    assert [part["pair"].x.tolist() for part in seen] == [[0, 1], [2, 3], [4]]
    assert [part["pair"].extra[0].shape for part in seen] == [(2, 2), (2, 2), (1, 2)]
    assert all(type(part["pair"]) is Pair for part in seen)
    assert all((part["mode"], part["nothing"], part["temperature"]) == ("train", None, 2) for part in seen)
    assert list(batch["names"]) == ["a", "b", "c", "d", "e"]


def test_a_micro_batch_s_activations_are_alive_at_once():
    model, batch = problem(torch.float32, num_samples=16, num_layers=1)
    peaks = []
    for size in (16, 4):

        def run(size=size):
            micro(model, batch, size)

        report = measure(run, model, inputs=batch)
        peaks.append(report.peak_bytes - report.resident_bytes)
    assert peaks[0] > 2 * peaks[1]  # what stays is the gradients


def test_what_cannot_be_split_or_weighted_is_refused():
    model, batch = problem()
    with pytest.raises(ConfigError, match="micro_batch_size is 0"):
        micro(model, batch, 0)
    with pytest.raises(ShapeError, match=r"'labels' of the batch must have shape \(7, \.\.\.\), got \(6\)"):
        micro(model, batch | {"labels": batch["labels"][:6]}, 2)
    with pytest.raises(ShapeError, match=r"the list 'names' of the batch must have shape"):
        micro(model, batch | {"names": ["a", "b"]}, 2)
    with pytest.raises(ConfigError, match=r"'meta' of the batch is a object(.|\n)*dict\(batch\)"):
        micro(model, batch | {"meta": object()}, 2)
    with pytest.raises(ConfigError, match="nothing to split"):
        backward_in_micro_batches(lambda batch: batch, {"a": 1}, micro_batch_size=1, count=lambda batch: 1)
    with pytest.raises(ConfigError, match="no samples"):
        backward_in_micro_batches(lambda b: b, {"a": torch.zeros(0)}, micro_batch_size=1, count=lambda b: 1)
    with pytest.raises(StepError, match=r"the loss is float(.|\n)*as a tensor"):
        micro(model, batch, 2, loss=lambda part: 1.0)
    with pytest.raises(StepError, match="depends on nothing that trains"):
        micro(model, batch, 2, loss=lambda part: torch.zeros(3))
    assert isinstance(model, nn.Module)
