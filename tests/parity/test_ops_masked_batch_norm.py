"""Masked batch norm against plain batch norm on the gathered rows."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from frostline.errors import ConfigError, ShapeError, StepError
from frostline.ops import MaskedBatchNorm1d, MaskedBatchNorm2d, masked_batch_norm

SHAPES = {"rows": (7, 6), "1d": (7, 6, 5), "2d": (7, 6, 9, 8), "3d": (7, 6, 3, 4, 5)}
MASK = torch.tensor([True, False, True, True, False, True, False])
# Against the plain step's own error over fp64, as in frostline.proof.
FLOORS = 8


def gathered(x, mask, *arguments, **keywords):
    """What the operator is the same as."""
    output = torch.zeros_like(x)
    output[mask] = F.batch_norm(x[mask], *arguments, **keywords)
    return output


def run(function, shape, dtype, *, mask=MASK, training=True, affine=True, running=True, poison=None, layout=None):
    """Output, gradients and buffers under a random output gradient; `poison` fills the masked rows."""
    generator = torch.Generator().manual_seed(0)

    def draw(*sizes):
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    channels, stats = shape[1], torch.promote_types(dtype, torch.float32)
    x = (draw(*shape) * 2 + 3).to(torch.bfloat16 if dtype == torch.bfloat16 else torch.float32).to(dtype)
    if poison is not None:
        x[~mask] = poison
    if layout is not None:
        x = x.contiguous(memory_format=layout)
    x.requires_grad_()
    weight, bias = ((draw(channels) + 1).to(stats).requires_grad_() for _ in range(2)) if affine else (None, None)
    mean, var = (draw(channels).to(stats), draw(channels).square().to(stats) + 0.5) if running else (None, None)
    output = function(x, mask, mean, var, weight, bias, training=training, momentum=0.3)
    output.backward(draw(*shape).to(dtype))
    grads = [tensor.grad for tensor in (x, weight, bias) if tensor is not None]
    return [output.detach(), *grads, *[tensor for tensor in (mean, var) if tensor is not None]]


def relative(actual, expected):
    difference = (actual.detach().double() - expected.detach().double()).abs().max()
    return float(difference / expected.detach().double().abs().max().clamp(min=1e-30))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_fp64_equals_the_gathered_rows(shape, training):
    plain, ours = (run(function, shape, torch.float64, training=training) for function in (gathered, masked_batch_norm))
    for expected, actual in zip(plain, ours, strict=True):
        assert actual.dtype == expected.dtype and actual.shape == expected.shape
        assert relative(actual, expected) <= 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("layout", [None, torch.channels_last], ids=["contiguous", "channels_last"])
def test_low_precision_stays_within_the_plain_ones_own_error(dtype, layout):
    shape = (7, 6, 33, 31)
    exact, plain, ours = (
        run(function, shape, kind, layout=layout)
        for function, kind in ((gathered, torch.float64), (gathered, dtype), (masked_batch_norm, dtype))
    )
    for truth, expected, actual in zip(exact, plain, ours, strict=True):
        assert actual.dtype == expected.dtype
        floor = max(relative(expected, truth), torch.finfo(actual.dtype).eps)
        assert relative(actual, truth) <= FLOORS * floor
    assert layout is None or ours[0].is_contiguous(memory_format=layout)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_masked_rows_are_never_read(shape, training, poison):
    clean = run(masked_batch_norm, shape, torch.float32, training=training, poison=0.0)
    poisoned = run(masked_batch_norm, shape, torch.float32, training=training, poison=poison)
    assert all(torch.equal(a, b) for a, b in zip(clean, poisoned, strict=True))
    assert not poisoned[0][~MASK].any() and not poisoned[1][~MASK].any()


def test_a_gradient_that_is_not_finite_in_masked_rows_does_no_harm():
    x, mean, var = torch.randn(7, 6, 4, 4, requires_grad=True), torch.zeros(6), torch.ones(6)
    weight, grad = torch.ones(6, requires_grad=True), torch.randn(7, 6, 4, 4)
    gradients = []
    for value in (0.0, float("nan")):
        grad[~MASK] = value
        output = masked_batch_norm(x, MASK, mean, var, weight, training=True)
        gradients.append(torch.autograd.grad(output, (x, weight), grad))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(("affine", "running"), [(False, True), (True, False), (False, False)])
def test_without_parameters_and_without_running_statistics(affine, running):
    # Without running statistics torch takes the batch's, in eval mode too.
    plain, ours = (
        run(function, SHAPES["2d"], torch.float64, affine=affine, running=running, training=True)
        for function in (gathered, masked_batch_norm)
    )
    assert all(relative(a, b) <= 1e-13 for a, b in zip(ours, plain, strict=True))


def test_a_mean_far_from_zero_keeps_its_variance():
    x = torch.randn(7, 6, 16, 16, dtype=torch.float64) * 1e-3 + 1000
    plain, ours = torch.ones(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
    for function, var in ((gathered, plain), (masked_batch_norm, ours)):
        function(x, MASK, torch.zeros(6, dtype=torch.float64), var, training=True, momentum=1.0)
    assert relative(ours, plain) <= 1e-9


@pytest.mark.parametrize("mask", [torch.zeros(7, dtype=torch.bool), torch.arange(7) == 3], ids=["none", "one value"])
def test_too_few_values_update_nothing(mask):
    layer = MaskedBatchNorm1d(6)
    before = copy.deepcopy(layer.state_dict())
    nn.init.normal_(layer.bias)
    before["bias"] = layer.bias.detach().clone()
    x = torch.randn(7, 6, requires_grad=True)
    output = layer(x, mask)
    output.sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    torch.testing.assert_close(output[mask], layer.bias.expand(int(mask.sum()), 6), rtol=0, atol=1e-3)
    assert not output[~mask].any() and not x.grad[~mask].any()
    assert x.grad.abs().max() < 1e-3 and torch.equal(layer.bias.grad, torch.full((6,), float(mask.sum())))


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize(("kind", "plain", "shape"), [
    (MaskedBatchNorm1d, nn.BatchNorm1d, (7, 6)),
    (MaskedBatchNorm2d, nn.BatchNorm2d, (7, 6, 5, 5)),
])  # fmt: skip
def test_the_layer_is_batch_norm_over_steps(kind, plain, shape, momentum, track):
    settings = dict(momentum=momentum, track_running_stats=track, dtype=torch.float64)
    reference, layer = plain(6, **settings), kind(6, **settings)
    nn.init.normal_(reference.weight)
    layer.load_state_dict(reference.state_dict())
    assert isinstance(layer, plain) and list(layer.state_dict()) == list(reference.state_dict())
    generator = torch.Generator().manual_seed(0)
    for step in range(6):
        for module in (reference, layer):
            module.train(step < 4)
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        mask = torch.rand(7, generator=generator) < 0.7
        assert relative(layer(x, mask)[mask], reference(x[mask])) <= 1e-13
    for name, value in reference.state_dict().items():
        assert relative(layer.state_dict()[name], value) <= 1e-13


def test_without_a_mask_the_layer_is_the_plain_one():
    reference, layer = nn.BatchNorm2d(6), MaskedBatchNorm2d(6)
    x = torch.randn(4, 6, 5, 5)
    assert torch.equal(layer(x), reference(x))
    assert torch.equal(layer.running_var, reference.running_var)


def test_half_a_network_under_autocast_and_checkpointing():
    torch.manual_seed(0)
    net = nn.ModuleList([nn.Conv2d(3, 6, 3), MaskedBatchNorm2d(6), nn.Conv2d(6, 4, 3)])
    twin = copy.deepcopy(net)

    def forward(part, x):
        return part[2](part[1](part[0](x), MASK).relu()).float().square().mean()

    x = torch.randn(7, 3, 12, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        forward(net, x).backward()
        loss = torch.utils.checkpoint.checkpoint(forward, twin, x, use_reentrant=False)
    loss.backward()
    for parameter, other in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.isfinite(parameter.grad).all() and torch.equal(parameter.grad, other.grad)


def test_nothing_waits_for_a_value():
    x = torch.randn(7, 6, 5, 5, requires_grad=True)
    layer = MaskedBatchNorm2d(6, momentum=None)
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        layer(x, MASK).sum().backward()
    names = {event.name for event in trace.events()}
    assert not names & {"aten::nonzero", "aten::item", "aten::_local_scalar_dense", "aten::index_put_"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_the_peak_is_the_plain_layers(layout, dtype):
    torch.manual_seed(0)
    kinds = {"plain": lambda net, x: net(x), "ours": lambda net, x: net(x, mask)}
    mask = torch.rand(16) < 0.8
    peaks = {}
    for name, call in kinds.items():
        net = MaskedBatchNorm2d(32)
        x = torch.randn(16, 32, 32, 32).to(dtype).contiguous(memory_format=layout).requires_grad_()

        def step(call=call, net=net, x=x):
            # As between two layers: the gradient that arrives belongs to nobody else.
            (call(net, x * 1) * 1).sum().backward()

        step()
        x.grad = None
        peaks[name] = allocated_peak(step)
    slack = 16 * 32 * 32 * 32 * x.element_size() // 16 * 2 + 65536
    assert peaks["ours"] <= peaks["plain"] + (slack if dtype == torch.bfloat16 else 65536)


def allocated_peak(function):
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        function()
    sizes = [(e.start_ns(), e.nbytes()) for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for _, num_bytes in sorted(sizes, key=lambda event: event[0]):
        alive += num_bytes
        peak = max(peak, alive)
    return peak


def test_errors():
    x = torch.randn(4, 6, 5, 5, requires_grad=True)
    with pytest.raises(ConfigError, match="mask is of type"):
        masked_batch_norm(x, torch.ones(4, dtype=torch.int64), None, None)
    with pytest.raises(ShapeError, match=r"mask must have shape \(4\), got \(3\)"):
        masked_batch_norm(x, torch.ones(3, dtype=torch.bool), None, None)
    with pytest.raises(ShapeError, match="input must have shape"):
        masked_batch_norm(x[0, 0, 0], torch.ones(5, dtype=torch.bool), None, None)
    output = masked_batch_norm(x, torch.ones(4, dtype=torch.bool), None, None, training=True)
    with pytest.raises(StepError, match="no second derivative"):
        torch.autograd.grad(output.square().sum(), x, create_graph=True)
