"""A frozen stream: the plain network with that stream's normalisation in eval mode."""

import copy

import pytest
import torch
from torch.nn import functional as F

from frostline.errors import CheckpointError, ConfigError
from frostline.memory import measure
from frostline.systems.linet.streams import (
    freeze_stream_,
    frozen_streams,
    load_stream_,
    stream_of,
    stream_parameters,
    stream_state,
    unfreeze_stream_,
)
from frostline.systems.linet.treatment import Treatment
from linet_parts import (
    TREATMENTS,
    different_buffers,
    missing,
    plain_step,
    samples,
    small_net,
    step,
    twins,
    worst_gradient,
)

SOME = missing("11 01 10 11 10 11")
each_treatment = pytest.mark.parametrize("treatment", TREATMENTS.values(), ids=TREATMENTS)


@each_treatment
@pytest.mark.parametrize("frozen", [(0,), (1,), (0, 1)])
def test_gradients_and_statistics_are_the_plain_ones(treatment, frozen):
    plain, treated = twins(small_net(), treatment)
    images, labels = samples()
    step(plain, images, labels, None)  # running statistics that are not neutral
    treated.load_state_dict(plain.state_dict())
    plain.zero_grad()
    for model in (plain, treated):
        for stream in frozen:
            freeze_stream_(model, stream)
    before = {stream: stream_state(treated, stream) for stream in frozen}
    assert torch.equal(step(treated, images, labels, SOME), plain_step(plain, images, labels, SOME))
    assert worst_gradient(treated, plain) <= 1e-13 and different_buffers(treated, plain) == []
    for stream in frozen:
        assert all(torch.equal(tensor, before[stream][name]) for name, tensor in stream_state(treated, stream).items())
    for name, parameter in treated.named_parameters():
        assert (parameter.grad is None) == (stream_of(name) in frozen), name


@each_treatment
def test_gradients_of_images_pass_through_a_frozen_stream(treatment):
    plain, treated = twins(small_net(), treatment)
    images, labels = samples()
    mine, other = ([image.clone().requires_grad_() for image in images] for _ in range(2))
    for model in (plain, treated):
        freeze_stream_(model, 1)
    plain_step(plain, other, labels, SOME)
    step(treated, mine, labels, SOME)
    for actual, expected in zip(mine, other, strict=True):
        assert expected.grad.any()
        torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-12, atol=1e-14)


def test_a_frozen_stream_stays_as_it_was_through_training_and_can_go_on():
    model = small_net()
    freeze_stream_(model, 1)
    assert frozen_streams(model) == (1,)
    before, others = stream_state(model, 1), stream_state(model, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for number in range(3):
        images, labels = samples(seed=number)
        model.train()
        step(model, images, labels, None)
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(tensor, before[name]) for name, tensor in stream_state(model, 1).items())
    assert not any(
        torch.equal(t, others[n]) for n, t in stream_state(model, 0).items() if "weights" in n and t.dim() > 1
    )
    unfreeze_stream_(model, 1)
    assert frozen_streams(model) == ()
    images, labels = samples()
    step(model, images, labels, None)
    assert all(parameter.grad is not None for parameter in stream_parameters(model, 1).values())


def test_a_frozen_stream_keeps_less_for_backward():
    images, labels = samples(8, size=64, dtype=torch.float32)
    peaks = {}
    for name, treatment in (("compact", Treatment()), ("outputs", TREATMENTS["outputs"])):
        for frozen in (False, True):
            model = small_net(torch.float32, width_multiplier=0.25)
            model.treatment = treatment
            if frozen:
                freeze_stream_(model, 0)
            report = measure(
                lambda model=model: F.cross_entropy(model(images), labels).backward(), model, inputs=(images, labels)
            )
            peaks[name, frozen] = report.peak_bytes - report.resident_bytes
    assert peaks["compact", True] < 0.85 * peaks["compact", False]
    assert peaks["outputs", True] < peaks["outputs", False]


def test_the_tensors_of_a_stream_are_its_own_to_the_last_digit():
    model = small_net(streams=(1,) * 11)
    assert stream_of("layer1.0.conv1.stream_weights.10") == 10 and stream_of("bn1.stream1_running_var") == 1
    assert stream_of("layer1.0.conv1.integration_from_streams.1") is None and stream_of("fc.weight") is None
    one, ten = stream_state(model, 1), stream_state(model, 10)
    assert len(one) == len(ten) and not one.keys() & ten.keys()
    owned = [stream_of(name) for name in model.state_dict()]
    assert all(owned.count(stream) == len(one) for stream in range(11))


def test_a_saved_stream_comes_back_whole_or_not_at_all():
    model = small_net()
    saved = stream_state(model, 0)
    images, labels = samples()
    step(model, images, labels, None)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    shared = model.fc.weight.clone()
    wrong = copy.deepcopy(saved)
    wrong.pop("bn1.stream0_running_mean")
    changed = stream_state(model, 0)
    with pytest.raises(CheckpointError, match="not one of stream 0"):
        load_stream_(model, 0, wrong)
    assert all(torch.equal(tensor, changed[name]) for name, tensor in stream_state(model, 0).items())
    load_stream_(model, 0, saved)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in stream_state(model, 0).items())
    assert torch.equal(model.fc.weight, shared)
    with pytest.raises(ConfigError, match="there is no stream 2"):
        freeze_stream_(model, 2)
