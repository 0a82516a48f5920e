"""Statistics over all processes, on one of them: the plain network but for the order of sums."""

import pytest
import torch
from torch.nn import functional as F

from frostline.systems.linet.layers import synchronise_
from frostline.systems.linet.synchronised import normalise_together
from linet_parts import TREATMENTS, missing, plain_step, samples, small_net, step, twins, worst_gradient

SOME = missing("11 01 10 11 10 11")


@pytest.mark.parametrize("treatment", TREATMENTS.values(), ids=TREATMENTS)
@pytest.mark.parametrize("availability", [SOME, missing("10 " * 6), None], ids=["some", "no depth", "all"])
def test_the_network_is_the_plain_one(treatment, availability):
    plain, treated = twins(small_net(), treatment)
    synchronise_(treated)
    images, labels = samples()
    expected = plain_step(plain, images, labels, availability)
    torch.testing.assert_close(step(treated, images, labels, availability), expected, rtol=1e-12, atol=1e-12)
    assert worst_gradient(treated, plain) <= 1e-10
    for mine, other in zip(treated.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-12)
    assert all(parameter.grad is not None for parameter in treated.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_the_function_is_batch_normalisation(dtype, offset):
    torch.manual_seed(0)
    raw = (torch.randn(5, 4, 3, 3, dtype=torch.float64) + offset).to(dtype)
    weight, bias = torch.rand(4).to(torch.promote_types(dtype, torch.float32)), torch.rand(4).to(dtype).float()
    bias = bias.to(weight.dtype)
    upstream = torch.randn(raw.shape).to(dtype)
    found = []
    for run in (
        lambda x, w, b, m, v: normalise_together(x, w, b, 1e-5, running=(m, v), momentum=0.1)[0],
        lambda x, w, b, m, v: F.batch_norm(x, m, v, w, b, True, 0.1, 1e-5),
    ):
        leaves = [tensor.clone().requires_grad_() for tensor in (raw, weight, bias)]
        running = torch.zeros(4, dtype=weight.dtype), torch.ones(4, dtype=weight.dtype)
        out = run(*leaves, *running)
        out.backward(upstream)
        found.append([out.detach(), *(leaf.grad for leaf in leaves), *running])
    eps = torch.finfo(dtype).eps
    for mine, other in zip(*found, strict=True):
        assert mine.dtype == other.dtype
        assert (mine - other).double().norm() <= 64 * (1 + offset) * eps * (other.double().norm() + 1)


def test_one_value_a_channel_and_none_update_nothing():
    for num in (0, 1):
        running = torch.zeros(3), torch.ones(3)
        raw = torch.randn(num, 3, 1, 1, requires_grad=True)
        out, _, _ = normalise_together(
            raw, torch.ones(3, requires_grad=True), torch.zeros(3), 1e-5, running=running, momentum=0.5
        )
        out.sum().backward()
        assert out.shape == raw.shape and (out.abs() < 1e-3).all() and (raw.grad.abs() < 1e-2).all()
        assert torch.equal(running[0], torch.zeros(3)) and torch.equal(running[1], torch.ones(3))
