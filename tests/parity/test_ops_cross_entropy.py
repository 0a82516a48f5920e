from __future__ import annotations

import weakref
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from frostline.errors import ConfigError, ShapeError, StepError
from frostline.ops import chunked_cross_entropy

TOKENS, WIDTH, VOCAB = 29, 12, 41


def plain(hidden, weight, target, *, bias=None, ignore_index=-100, reduction="mean"):
    logits = F.linear(hidden, weight, bias).reshape(-1, weight.shape[0])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, target.reshape(-1), ignore_index=ignore_index, reduction=reduction)


def problem(dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(VOCAB, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    bias = torch.randn(VOCAB, generator=generator, dtype=torch.float64).to(dtype)
    target = torch.randint(VOCAB, (TOKENS,), generator=generator)
    target[::5] = -100
    return hidden, weight, bias, target


def value_and_gradients(loss, tensors, trainable):
    leaves = [tensor.detach().clone().requires_grad_(train) for tensor, train in zip(tensors, trainable, strict=True)]
    value = loss(*leaves)
    value.backward()
    return [value.detach(), *(leaf.grad for leaf in leaves)]


def both(run, tensors, trainable=(True,)):
    """Values and gradients of ``run(loss, *tensors)`` with our loss and with the plain one."""
    return [value_and_gradients(partial(run, loss), tensors, trainable) for loss in (chunked_cross_entropy, plain)]


def relative_error(actual, expected):
    return ((actual.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("trainable", [(True, False, False), (True, True, True), (False, True, False)])
@pytest.mark.parametrize("chunk_tokens", [1, 7, 29, 64])
def test_equals_plain_in_float64(chunk_tokens, trainable, reduction):
    hidden, weight, bias, target = problem()
    tensors = (hidden, weight, bias)
    ours = value_and_gradients(
        lambda h, w, b: chunked_cross_entropy(h, w, target, bias=b, chunk_tokens=chunk_tokens, reduction=reduction),
        tensors,
        trainable,
    )
    theirs = value_and_gradients(lambda h, w, b: plain(h, w, target, bias=b, reduction=reduction), tensors, trainable)
    for mine, reference in zip(ours, theirs, strict=True):
        assert (mine is None) == (reference is None)
        if mine is not None:
            torch.testing.assert_close(mine, reference, rtol=1e-12, atol=1e-12)


def test_gradcheck():
    hidden, weight, bias, target = problem()
    leaves = [tensor[:9].requires_grad_() for tensor in (hidden, weight, bias)]

    def loss(h, w, b):
        return chunked_cross_entropy(h, w, target[:9].clamp(max=8), bias=b, chunk_tokens=4)

    assert torch.autograd.gradcheck(loss, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_is_that_of_plain_torch(dtype):
    *tensors, target = problem(dtype)
    truth = value_and_gradients(lambda h, w, b: plain(h, w, target, bias=b), [t.double() for t in tensors], (True,) * 3)
    theirs = value_and_gradients(lambda h, w, b: plain(h, w, target, bias=b), tensors, (True,) * 3)
    ours = value_and_gradients(
        lambda h, w, b: chunked_cross_entropy(h, w, target, bias=b, chunk_tokens=8), tensors, (True,) * 3
    )
    assert ours[0].dtype == torch.float32
    for mine, reference, exact in zip(ours, theirs, truth, strict=True):
        noise = max(relative_error(reference, exact), torch.finfo(dtype).eps)
        assert mine.dtype == reference.dtype
        assert relative_error(mine, exact) <= 3 * noise


@pytest.mark.parametrize("chunk_tokens", [0, 8])
def test_the_loss_of_half_precision_inputs_is_not_rounded_to_half_precision(chunk_tokens):
    hidden, weight, _, target = problem(torch.bfloat16)
    logits = F.linear(hidden, weight).float()
    ours = chunked_cross_entropy(hidden, weight, target, chunk_tokens=chunk_tokens)
    torch.testing.assert_close(ours, F.cross_entropy(logits, target), rtol=1e-6, atol=1e-6)


def test_follows_autocast_as_linear_does():
    *tensors, target = problem(torch.float32)

    def run(loss):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return value_and_gradients(loss, tensors, (True,) * 3)

    ours = run(lambda h, w, b: chunked_cross_entropy(h, w, target, bias=b, chunk_tokens=8))
    theirs = run(lambda h, w, b: plain(h, w, target, bias=b))
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=1e-6)
    for mine, reference in zip(ours[1:], theirs[1:], strict=True):
        assert mine.dtype == torch.float32
        assert relative_error(mine, reference) < 2 * torch.finfo(torch.bfloat16).eps


def test_a_loss_scale_keeps_small_float16_gradients():
    hidden, weight, _, target = problem(torch.float16)
    hidden, target = hidden.repeat(200, 1), target.repeat(200)
    (_, ours, _), (_, theirs, _) = both(
        lambda loss, h, w: loss(h, w, target) * 2.0**16, (hidden, weight), (True, False)
    )
    assert torch.equal(ours == 0, theirs == 0)
    assert relative_error(ours, theirs) < 4 * torch.finfo(torch.float16).eps


@pytest.mark.parametrize("ignore_index", [0, 3, -1])
def test_any_ignore_index_even_a_class(ignore_index):
    hidden, weight, _, target = problem()
    target = target.clamp(min=0)
    target[::4] = ignore_index
    ours, theirs = both(lambda loss, h: loss(h, weight, target, ignore_index=ignore_index), [hidden])
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_when_no_token_counts_the_mean_is_nan_and_the_gradient_zero_like_torch():
    hidden, weight, _, _ = problem()
    target = torch.full((TOKENS,), -100)
    for value, gradient in both(lambda loss, h: loss(h, weight, target), [hidden]):
        assert value.isnan()
        assert torch.equal(gradient, torch.zeros_like(hidden))
    assert chunked_cross_entropy(hidden, weight, target, reduction="sum") == 0


def test_extreme_and_impossible_logits_like_torch():
    hidden, weight, bias, target = problem(torch.float32)
    bias[0] = -torch.inf
    target = target.clamp(min=1)
    ours, theirs = both(lambda loss, h: loss(h * 1e3, weight, target, bias=bias), [hidden])
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    target[0] = 0
    assert chunked_cross_entropy(hidden, weight, target, bias=bias) == torch.inf


def test_leading_dimensions_and_strides_do_not_matter():
    hidden, weight, _, target = problem()
    hidden = hidden[:28].reshape(4, 7, WIDTH).transpose(0, 1)  # clones keep the strides
    assert not hidden.clone().is_contiguous()
    target = target[:28].reshape(4, 7).t()
    ours, theirs = both(lambda loss, h: loss(h, weight, target), [hidden])
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_gradients_accumulate_over_micro_batches_and_a_tied_weight():
    hidden, weight, _, target = problem()
    whole, parts = (weight.clone().requires_grad_() for _ in range(2))
    plain(whole[:TOKENS] * hidden, whole, target, reduction="sum").backward()
    for rows in (slice(0, 11), slice(11, TOKENS)):
        chunked_cross_entropy(
            parts[rows] * hidden[rows], parts, target[rows], reduction="sum", chunk_tokens=4
        ).backward()
    torch.testing.assert_close(parts.grad, whole.grad, rtol=1e-12, atol=1e-12)


def test_backward_twice_gives_the_same_gradient_twice():
    hidden, weight, _, target = problem()
    hidden.requires_grad_()
    loss = chunked_cross_entropy(hidden, weight, target)
    first, second = (torch.autograd.grad(loss, hidden, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_under_autocast_the_loss_is_float32_and_a_trainable_head_has_all_its_gradients():
    *tensors, target = problem(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = chunked_cross_entropy(*tensors[:2], target, bias=tensors[2], chunk_tokens=8)
        logits = F.linear(*tensors)
    assert loss.dtype == torch.float32
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), target), rtol=1e-6, atol=1e-6)
    double = value_and_gradients(
        lambda h, w, b: plain(h, w, target, bias=b), [t.double() for t in tensors], (True,) * 3
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = value_and_gradients(
            lambda h, w, b: chunked_cross_entropy(h, w, target, bias=b, chunk_tokens=8), tensors, (True,) * 3
        )
    for mine, reference in zip(ours[1:], double[1:], strict=True):
        assert relative_error(mine, reference) < 4 * torch.finfo(torch.bfloat16).eps


def test_under_activation_checkpointing():
    hidden, weight, _, target = problem()
    without = value_and_gradients(lambda h: chunked_cross_entropy(h.tanh(), weight, target), [hidden], [True])
    within = value_and_gradients(
        lambda h: checkpoint(lambda x: chunked_cross_entropy(x.tanh(), weight, target), h, use_reentrant=False),
        [hidden],
        [True],
    )
    assert all(torch.equal(a, b) for a, b in zip(within, without, strict=True))


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning")
def test_compiled(monkeypatch):
    monkeypatch.setattr(pytest.importorskip("tqdm").tqdm, "monitor_interval", 0)  # torch's compiler starts it
    hidden, weight, bias, target = problem(torch.float32)

    def loss(h, w, b):
        return chunked_cross_entropy(h, w, target, bias=b, chunk_tokens=8)

    plain = value_and_gradients(loss, (hidden, weight, bias), (True,) * 3)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for mine, reference in zip(value_and_gradients(compiled, (hidden, weight, bias), (True,) * 3), plain, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-6, atol=1e-6)
    torch._dynamo.reset()


def test_a_second_derivative_is_refused_and_the_plain_loss_named():
    hidden, weight, _, target = problem()
    hidden.requires_grad_()
    with pytest.raises(StepError, match=r"no second derivative(.|\n)*chunk_tokens=0"):
        torch.autograd.grad(chunked_cross_entropy(hidden, weight, target), hidden, create_graph=True)
    loss = chunked_cross_entropy(hidden, weight, target, chunk_tokens=0)
    (gradient,) = torch.autograd.grad(loss, hidden, create_graph=True)
    gradient.square().sum().backward()
    assert hidden.grad is not None


@pytest.mark.parametrize("class_index", [VOCAB, -1])
def test_a_target_outside_the_vocabulary_raises_as_in_torch(class_index):
    hidden, weight, _, target = problem()
    target[3] = class_index
    for loss in (plain, chunked_cross_entropy):
        with pytest.raises(IndexError, match=f"Target {class_index} is out of bounds"):
            loss(hidden, weight, target)


def test_shapes_that_do_not_fit_are_named():
    hidden, weight, bias, target = problem()
    with pytest.raises(ShapeError, match=r"target must have shape \(29\), got \(28\)"):
        chunked_cross_entropy(hidden, weight, target[1:])
    with pytest.raises(ShapeError, match=r"weight must have shape \(V, 12\), got \(41, 11\)"):
        chunked_cross_entropy(hidden, weight[:, 1:], target)
    with pytest.raises(ShapeError, match=r"bias must have shape \(41\), got \(40\)"):
        chunked_cross_entropy(hidden, weight, target, bias=bias[1:])
    with pytest.raises(ConfigError, match="chunk_tokens is -1"):
        chunked_cross_entropy(hidden, weight, target, chunk_tokens=-1)
    with pytest.raises(ConfigError, match="reduction is 'none'"):
        chunked_cross_entropy(hidden, weight, target, reduction="none")


class LiveBytes(TorchDispatchMode):
    """Bytes of storages made under it: alive now and at most."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.seen = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        inputs = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if _is_tensor(leaf)}
        for leaf in filter(_is_tensor, tree_leaves(result)):
            storage = leaf.untyped_storage()
            if storage not in self.seen and storage._cdata not in inputs:
                self.seen.add(storage)
                self.live += storage.nbytes()
                weakref.finalize(storage, self.release, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def release(self, num_bytes):
        self.live -= num_bytes


def _is_tensor(value):
    return isinstance(value, Tensor)


def bytes_of_a_step(dtype=torch.float32, *, grad=True, fake=False):
    """Peak of loss and backward, and what forward leaves for backward, beside the inputs."""
    with FakeTensorMode() if fake else torch.random.fork_rng(devices=()):
        hidden = torch.zeros(256, 16, dtype=dtype, requires_grad=grad)
        weight = torch.zeros(5000, 16, dtype=dtype)
        target = torch.zeros(256, dtype=torch.int64)
        with LiveBytes() as log:
            loss = chunked_cross_entropy(hidden, weight, target, chunk_tokens=32)
            kept = log.live
            if grad:
                loss.backward()
    return log.peak, kept


@pytest.mark.parametrize(("dtype", "factor"), [(torch.float32, 1.0), (torch.bfloat16, 1.5)])
def test_holds_one_chunk_of_logits_and_the_gradient_of_hidden(dtype, factor):
    peak_bytes, kept_bytes = bytes_of_a_step(dtype)
    chunk_bytes, hidden_bytes = 4 * 32 * 5000, 256 * 16 * dtype.itemsize
    assert factor * chunk_bytes <= peak_bytes <= factor * chunk_bytes + 2 * hidden_bytes + 4096
    assert kept_bytes <= hidden_bytes + 64


def test_keeps_nothing_where_no_gradient_is_wanted():
    _, kept_bytes = bytes_of_a_step(grad=False)
    assert kept_bytes <= 64
    hidden, weight, _, target = problem()
    with torch.no_grad(), LiveBytes() as log:
        loss = chunked_cross_entropy(hidden.requires_grad_(), weight, target)
        assert log.live <= 64
    assert not loss.requires_grad


def test_fake_tensors_show_the_same_bytes():
    assert bytes_of_a_step(fake=True) == bytes_of_a_step(fake=False)
