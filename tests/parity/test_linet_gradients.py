"""The compact network against the plain one: gradients, statistics, training, precision, layouts, DDP."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from frostline.errors import DataError, ShapeError, StepError
from frostline.ops import checkpoint_
from frostline.systems.linet.availability import draw_availability
from frostline.systems.linet.compact import Rows
from frostline.systems.linet.reference import plain_logits
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
NO_DEPTH = missing("10 10 10 10 10 10")
each_treatment = pytest.mark.parametrize("treatment", TREATMENTS.values(), ids=TREATMENTS)


def compare(model, treatment, availability, *, num=6, streams=(3, 1), size=32):
    plain, treated = twins(model, treatment)
    images, labels = samples(num, streams=streams, size=size)
    expected = plain_step(plain, images, labels, availability)
    actual = step(treated, images, labels, availability)
    assert torch.equal(actual, expected)
    assert worst_gradient(treated, plain) <= 1e-13
    assert different_buffers(treated, plain) == []
    return plain, treated


@each_treatment
def test_gradients_and_statistics_are_the_plain_ones(treatment):
    _, treated = compare(small_net(), treatment, SOME)
    assert all(parameter.grad is not None for parameter in treated.parameters())


@pytest.mark.parametrize(
    "availability", [None, missing("11 11 11 11 11 11"), NO_DEPTH], ids=["none", "all", "no depth"]
)
@each_treatment
def test_nobody_and_everybody_missing(treatment, availability):
    _, treated = compare(small_net(), treatment, availability)
    assert all(parameter.grad is not None for parameter in treated.parameters())


@pytest.mark.parametrize("num_slices", [1, 2, 3, 100])
def test_slices_of_any_width(num_slices):
    """40 channels: 40; 32 and 8; 16, 16 and 8. A slice has 16 channels at least."""
    treatment = Treatment(stem_slices=num_slices)
    _, treated = compare(small_net(width_multiplier=0.625, layers=(1, 1, 1, 1)), treatment, SOME)
    plain, sliced = twins(copy.deepcopy(treated).float(), treatment)
    plain.treatment = Treatment(stem_slices=1)
    images, labels = samples(dtype=torch.float32)
    for model in (plain, sliced):
        model.zero_grad()
        step(model, images, labels, SOME)
    for mine, other in zip(sliced.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine.grad, other.grad), "in float32 too"


def test_compact_streams_alone_are_bit_by_bit_equal():
    plain, treated = compare(small_net(), Treatment(), SOME)
    for mine, other in zip(treated.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine.grad, other.grad)


@pytest.mark.parametrize("level", ["none", "outputs", "blocks"])
@pytest.mark.parametrize("settings", [
    dict(streams=(3, 1, 2)),
    dict(streams=(3,)),
    dict(depth=50),
    dict(depth=50, groups=2, width_per_group=32, replace_stride_with_dilation=(False, True, True)),
    dict(depth=34),
    dict(layers=(1, 1, 6, 1)),
    dict(fill="learned", streams=(3, 1, 2)),
], ids=["three", "one", "50", "groups and dilation", "34", "ends with a shortcut", "learned fill"])  # fmt: skip
def test_other_networks(settings, level):
    streams = settings.get("streams", (3, 1))
    availability = draw_availability("independent", 6, len(streams), 0.4, generator=torch.Generator().manual_seed(3))
    treatment = Treatment(recompute=level, stem_slices=2 if level == "outputs" else 0)
    compare(small_net(**settings), treatment, availability, streams=streams)


@pytest.mark.parametrize("name", ["compact", "outputs", "blocks"])
def test_twenty_optimizer_steps_with_dropout(name):
    plain, treated = twins(small_net(), TREATMENTS[name])
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9) for model in (plain, treated)]
    generator = torch.Generator().manual_seed(0)
    for number in range(20):
        images, labels = samples(6, seed=number)
        availability = draw_availability("one_of_n", 6, 2, 0.4, generator=generator)
        for model, optimizer, run in zip((plain, treated), optimizers, (plain_step, step), strict=True):
            optimizer.zero_grad()
            run(model, images, labels, availability)
            optimizer.step()
    for mine, other in zip(treated.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)
    for mine, other in zip(treated.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)
    assert int(treated.bn1.num_batches_tracked) == 20


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@each_treatment
def test_missing_data_is_never_read(treatment, value):
    plain, treated = twins(small_net(), treatment)
    images, labels = samples()
    plain_step(plain, images, labels, SOME)
    for index, image in enumerate(images):
        image[~SOME[:, index]] = value
    step(treated, images, labels, SOME)
    assert worst_gradient(treated, plain) <= 1e-13
    assert different_buffers(treated, plain) == []
    with torch.no_grad():
        assert torch.isfinite(treated.eval()(images, SOME)).all()


@each_treatment
def test_eval_mode(treatment):
    plain, treated = (model.eval() for model in twins(small_net(), treatment))
    images, labels = samples()
    with torch.no_grad():
        assert torch.equal(treated(images, SOME), plain_logits(plain, images, SOME))
    plain_step(plain, images, labels, SOME)
    step(treated, images, labels, SOME)
    assert worst_gradient(treated, plain) <= 1e-13
    assert different_buffers(treated, small_net()) == []


@pytest.mark.parametrize("published", ["before", "after"])
def test_both_published_maskings_are_one_function(published):
    plain, other = twins(small_net(), Treatment())
    images, labels = samples()
    plain_step(plain, images, labels, SOME)
    F.cross_entropy(plain_logits(other, images, SOME, masking=published), labels).backward()
    assert worst_gradient(other, plain) <= 1e-13 and different_buffers(other, plain) == []


@each_treatment
def test_accumulation(treatment):
    plain, treated = twins(small_net(), treatment)
    for number in range(3):
        images, labels = samples(seed=number)
        plain_step(plain, images, labels, SOME.roll(number, 0))
        step(treated, images, labels, SOME.roll(number, 0))
    assert worst_gradient(treated, plain) <= 1e-13
    assert different_buffers(treated, plain) == []


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels last"])
@each_treatment
def test_layouts_of_images_and_weights(treatment, layout):
    plain, treated = twins(small_net(), treatment)
    treated.to(memory_format=layout)
    images, labels = samples()
    plain_step(plain, images, labels, SOME)
    step(treated, [image.contiguous(memory_format=layout) for image in images], labels, SOME)
    # Weights of another layout take other kernels.
    assert worst_gradient(treated, plain) <= (1e-13 if layout == torch.channels_last else 1e-11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@each_treatment
def test_under_autocast_a_treatment_changes_nothing(treatment, dtype):
    model = small_net(torch.float32)
    images, labels = samples(dtype=torch.float32)
    gradients = {}
    for name, kind in (("compact", Treatment()), ("treated", treatment)):
        _, treated = twins(model, kind)
        with torch.autocast("cpu", dtype=dtype):
            logits = treated(images, SOME)
            assert logits.dtype == dtype
            loss = F.cross_entropy(logits.float(), labels)
        (loss * 64).backward()
        gradients[name] = treated
    assert all(torch.isfinite(p.grad).all() and p.grad.dtype == torch.float32 for p in treated.parameters())
    assert worst_gradient(gradients["treated"], gradients["compact"]) <= 4 * torch.finfo(dtype).eps
    assert different_buffers(gradients["treated"], gradients["compact"]) == []


def test_under_autocast_the_error_is_the_plain_networks():
    exact, plain = twins(small_net(), Treatment())
    treated = copy.deepcopy(exact)
    treated.treatment = TREATMENTS["outputs"]
    images, labels = samples(12, size=64)
    availability = SOME.repeat(2, 1)
    plain_step(exact, images, labels, availability)
    images = [image.float() for image in images]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain_step(plain.float(), images, labels, availability)
        step(treated.float(), images, labels, availability)
    truth, expected, actual = (
        torch.cat([p.grad.double().flatten() for p in model.parameters()]) for model in (exact, plain, treated)
    )
    assert (actual - truth).norm() <= 1.1 * (expected - truth).norm()
    assert F.cosine_similarity(actual, truth, dim=0) > 0.9


@each_treatment
def test_checkpointed_blocks_update_statistics_once(treatment):
    plain, treated = twins(small_net(), treatment)
    images, labels = samples()
    plain_step(plain, images, labels, SOME)
    handle = checkpoint_(treated, ["layer1.*", "layer4.*"])
    step(treated, images, labels, SOME)
    handle.remove()
    assert worst_gradient(treated, plain) <= 1e-13
    assert different_buffers(treated, plain) == []


@each_treatment
def test_the_whole_network_checkpointed(treatment):
    plain, treated = twins(small_net(), treatment)
    images, labels = samples()
    plain_step(plain, images, labels, SOME)
    F.cross_entropy(checkpoint(treated, images, SOME, use_reentrant=False), labels).backward()
    assert worst_gradient(treated, plain) <= 1e-13
    assert different_buffers(treated, plain) == []


@each_treatment
def test_the_images_gradient(treatment):
    plain, treated = twins(small_net(), treatment)
    images, labels = samples()
    mine, other = ([image.clone().requires_grad_() for image in images] for _ in range(2))
    plain_step(plain, other, labels, SOME)
    step(treated, mine, labels, SOME)
    for index, (actual, expected) in enumerate(zip(mine, other, strict=True)):
        torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-12, atol=1e-14)
        assert not actual.grad[~SOME[:, index]].any()


@each_treatment
def test_frozen_parts_get_no_gradient(treatment):
    plain, treated = twins(small_net(), treatment)
    images, labels = samples()
    for model in (plain, treated):
        model.conv1.stream_weights[0].requires_grad_(False)
        model.conv1.integration_from_streams[1].requires_grad_(False)
        model.bn1.stream_weights[1].requires_grad_(False)
        model.layer2.requires_grad_(False)
    plain_step(plain, images, labels, SOME)
    step(treated, images, labels, SOME)
    assert worst_gradient(treated, plain) <= 1e-13
    frozen = [parameter for parameter in treated.parameters() if not parameter.requires_grad]
    assert frozen and all(parameter.grad is None for parameter in frozen)


@each_treatment
def test_a_second_backward_through_a_retained_graph(treatment):
    _, once = twins(small_net(), treatment)
    _, twice = twins(small_net(), treatment)
    images, labels = samples()
    step(once, images, labels, SOME)
    loss = F.cross_entropy(twice(images, SOME), labels)
    loss.backward(retain_graph=True)
    twice.zero_grad()
    loss.backward()
    assert worst_gradient(twice, once) == 0


@each_treatment
def test_a_users_distributed_data_parallel(treatment, tmp_path):
    images, labels = samples(dtype=torch.float32)
    alone, inside = twins(small_net(torch.float32), treatment)
    alone.treatment = treatment
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(inside)
        for availability in (SOME, NO_DEPTH, None):
            for model in (alone, wrapped):
                model.zero_grad()
                F.cross_entropy(model(images, availability), labels).backward()
            assert worst_gradient(inside, alone) <= 1e-6
            assert all(parameter.grad is not None for parameter in inside.parameters())
    finally:
        dist.destroy_process_group()


def test_one_sample_at_the_smallest_size():
    """A single value a channel has no variance: its statistics are left alone, and nothing raises."""
    model = small_net()
    images, labels = samples(3, size=32)
    before = copy.deepcopy(model.state_dict())
    loss = step(model, images, labels, missing("11 10 10"))
    assert torch.isfinite(loss) and all(torch.isfinite(p.grad).all() for p in model.parameters())
    name = "layer4.0.bn2.stream1_running_var"  # 1x1 maps of one sample
    assert torch.equal(model.state_dict()[name], before[name])
    assert not torch.equal(model.state_dict()["layer4.0.bn2.stream0_running_var"], before[name])


@each_treatment
def test_no_host_reads_beyond_one_a_stream(treatment):
    model = small_net(torch.float32, layers=(1, 1, 1, 1))
    model.treatment = treatment
    images, labels = samples(dtype=torch.float32)
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        step(model, images, labels, SOME)
    names = [event.name for event in trace.events()]
    assert not {"aten::nonzero", "aten::item", "aten::_local_scalar_dense"} & set(names)


def test_an_activation_changed_before_backward_is_noticed():
    model = small_net()
    model.treatment = TREATMENTS["outputs"]
    kept = []
    handle = model.layer2[0].register_forward_hook(lambda module, args, output: kept.append(output[1]))
    images, labels = samples()
    loss = F.cross_entropy(model(images, SOME), labels)
    handle.remove()
    with torch.no_grad():
        kept[0].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_no_second_derivative_through_the_fused_stem():
    model = small_net()
    model.treatment = TREATMENTS["fused stem"]
    images, labels = samples()
    with pytest.raises(StepError, match="no second derivative"):
        torch.autograd.grad(F.cross_entropy(model(images), labels), list(model.parameters()), create_graph=True)


def test_inputs_that_do_not_agree():
    model, (images, _) = small_net(), samples()
    with pytest.raises(DataError, match="sample 1 of the batch has no stream at all"):
        model(images, missing("11 00 11 11 11 11"))
    with pytest.raises(ShapeError, match=r"the samples of each stream must have shape \(5, 5\), got \(6, 6\)"):
        model(images, SOME[:5])
    with pytest.raises(ShapeError, match=r"the streams must have shape \(2\), got \(1\)"):
        model(images[:1])
    rows = Rows.of(SOME)
    assert torch.equal(model.eval()(images, rows), model(images, SOME))
