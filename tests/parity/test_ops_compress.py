from __future__ import annotations

import copy
import pickle
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from frostline.errors import ConfigError
from frostline.memory import measure
from frostline.ops import checkpoint_, compress, compress_
from frostline.proof import compare_gradients, gradients_of
from frostline.tracing import build_fake, fake_tensors
from small_transformer import build, equal, kept_bytes, loss_of, relative_error, step

BLOCKS = ("blocks.*",)
CODES = ("bfloat16", "int8")
LARGEST_ERROR = {"bfloat16": 2e-3, "int8": 1e-2}  # of the whole gradient, in this small model


def bytes_of(store, code):
    return store.peak_written_bytes * {"bfloat16": 1 / 2, "int8": (1 + 4 / 64) / 4}[code]


@pytest.fixture(params=["frozen", "trainable"])
def region(request):
    return request.param


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_forward_is_exact_and_the_gradient_within_its_bound(code, dtype, region):
    model, *batch = build(dtype, frozen=region == "frozen", dropout=0.1)
    expected = step(model, *batch)
    generator, state = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    handle = compress_(model, BLOCKS, code=code, region=region, min_bytes=0)
    actual = step(model, *batch)
    assert torch.equal(actual[0], expected[0])
    assert 0 < relative_error(actual, expected) < LARGEST_ERROR[code]
    assert handle.store.peak_written_bytes > 0
    assert torch.equal(torch.get_rng_state(), generator)
    assert equal(list(model.state_dict().values()), list(state.values()))


def test_the_proof_names_its_class():
    model, *batch = build()
    step(model, *batch)
    plain = gradients_of(model)
    compress_(model, BLOCKS, code="int8", min_bytes=0)
    step(model, *batch)
    assert compare_gradients(plain, gradients_of(model)).proof_class == "BOUNDED"


def test_what_is_in_half_precision_already_is_exact_in_bfloat16(region):
    for dtype, autocast in ((torch.bfloat16, False), (torch.float32, True)):
        model, *batch = build(dtype, frozen=region == "frozen")
        expected = step(model, *batch, autocast=autocast)
        handle = compress_(model, BLOCKS, code="bfloat16", region=region, min_bytes=0)
        actual = step(model, *batch, autocast=autocast)
        assert relative_error(actual, expected) < 4e-3
        assert autocast or (equal(actual, expected) and handle.store.peak_written_bytes == 0)


def test_int8_under_autocast_and_in_bfloat16(region):
    for dtype, autocast in ((torch.bfloat16, False), (torch.float32, True)):
        model, *batch = build(dtype, frozen=region == "frozen")
        expected = step(model, *batch, autocast=autocast)
        handle = compress_(model, BLOCKS, code="int8", region=region, min_bytes=0)
        actual = step(model, *batch, autocast=autocast)
        assert handle.store.peak_written_bytes > 0
        assert relative_error(actual, expected) < 4e-2  # bfloat16 against float32 alone is 1e-2


@pytest.mark.parametrize("code", CODES)
def test_gradients_accumulate_and_a_second_backward_gives_the_same(code):
    model, x, target = build()
    compress_(model, BLOCKS, code=code, min_bytes=0)
    loss = loss_of(model, x, target)
    first, second = (torch.autograd.grad(loss, model.front.weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    other = torch.autograd.grad(loss_of(model, x * 2, target), model.front.weight)[0]
    model.zero_grad()
    for factor in (1, 2):
        loss_of(model, x * factor, target).backward()
    assert torch.equal(model.front.weight.grad, first + other)


def test_inside_a_checkpoint_it_is_a_plain_call():
    model, *batch = build()
    expected = step(model, *batch)
    handle = compress_(model, BLOCKS, code="int8", min_bytes=0)
    checkpoint_(model, BLOCKS)
    assert equal(step(model, *batch), expected)
    assert handle.store.peak_written_bytes == 0


def test_a_compiled_model_and_what_a_compiled_part_saves_stay_exact(monkeypatch):
    monkeypatch.setattr(pytest.importorskip("tqdm").tqdm, "monitor_interval", 0)  # torch's compiler starts it
    model, *batch = build()
    expected = step(model, *batch)
    handle = compress_(model, BLOCKS, code="int8", min_bytes=0)
    assert equal(step(torch.compile(model, backend="eager", fullgraph=True), *batch), expected)
    assert handle.store.peak_written_bytes == 0
    handle.remove()
    outer = nn.Sequential(torch.compile(model, backend="aot_eager", fullgraph=True))
    expected = step(outer, *batch)
    handle = compress_(outer, [outer], code="int8", region="any", min_bytes=0)
    assert equal(step(outer, *batch), expected)
    assert handle.store.peak_written_bytes == 0
    torch._dynamo.reset()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    num_elements=st.integers(1, 300),
    exponent=st.integers(-30, 30),
    code=st.sampled_from(CODES),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16]),
    seed=st.integers(0, 10**6),
)
def test_every_element_is_within_the_documented_bound(num_elements, exponent, code, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randn(num_elements, generator=generator, dtype=torch.float64).mul(3).exp()
    flat = torch.randn(num_elements, generator=generator, dtype=torch.float64) * spread * 2.0**exponent
    flat = flat.to(dtype).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    restored = compress._Codes(0, code).write(flat)()
    assert (restored.dtype, restored.shape) == (flat.dtype, flat.shape)
    assert restored.untyped_storage().nbytes() == flat.nbytes
    if code == "bfloat16":
        bound = flat.double().abs() / 2**8
    else:
        padded = nn.functional.pad(flat.double().abs(), (0, -num_elements % 64)).view(-1, 64)
        bound = (padded.amax(1) / 254).repeat_interleave(64)[:num_elements]
    own = torch.finfo(dtype).eps  # the result is rounded to its own type
    assert ((restored.double() - flat.double()).abs() <= bound * (1 + 1e-5) + own * flat.double().abs() + 1e-38).all()


def test_large_storages_are_coded_in_pieces_without_a_seam(monkeypatch):
    flat = torch.randn(1000)
    whole = compress._Codes(0, "int8").write(flat)()
    monkeypatch.setattr(compress, "_PIECE", 128)
    assert torch.equal(compress._Codes(0, "int8").write(flat)(), whole)


class Layer(nn.Module):
    """Two activations, a constant, a mask, and a view of what is only a part of its storage."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor

    def forward(self, x, scale):
        y = x.exp() * self.factor
        return y * y.t() * scale + y.masked_fill(y > 1, 0.0).sin()


def test_only_what_the_gradient_passes_through_is_coded_and_each_storage_once():
    model, leaf = Layer(), torch.randn(16, 16, requires_grad=True)
    store = compress_(model, [model], code="int8", region="any", min_bytes=0).store
    output = model(leaf, torch.randn(16, 16))
    assert store.written_bytes == 3 * leaf.nbytes  # exp, y and its transpose once, masked; the product is not kept
    output.sum().backward()
    assert leaf.grad is not None


@pytest.mark.parametrize(("value", "num_coded"), [(torch.inf, 1), (torch.nan, 0)])
def test_what_is_not_finite_stays_exact_in_int8(value, num_coded):
    x = torch.randn(8, 8)
    x[3, 3] = value
    gradients = []
    for treat in (False, True):
        model, leaf = Layer(), x.clone().requires_grad_()
        if treat:
            store = compress_(model, [model], code="int8", region="any", min_bytes=0).store
        model(leaf, torch.ones(8, 8)).sum().backward()
        gradients.append(leaf.grad)
    assert store.peak_written_bytes == num_coded * x.nbytes  # the infinity is masked, and the rest coded
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-2, atol=1e-2, equal_nan=True)


def test_the_statistics_of_norms_and_attention_stay_exact():
    written = []

    class Recorder(compress._Codes):
        def write(self, flat):
            written.append(flat.numel())
            return super().write(flat)

    model, *batch = build(num_layers=1)
    handle = compress_(model, BLOCKS, code="bfloat16", min_bytes=0)
    handle.store.__class__ = Recorder
    step(model, *batch)
    assert min(written) == 3 * 16 * 32  # a number a feature; one a token or a head would be fewer


def test_region_is_seen_at_every_call():
    model, *batch = build(frozen=False)
    model.blocks[0].requires_grad_(False)
    for region, parts in (("frozen", (0,)), ("trainable", (1,)), ("any", (0, 1))):
        sizes = {}
        for part in range(2):
            handle = compress_(model, [f"blocks.{part}"], code="int8", region=region, min_bytes=0)
            step(model, *batch)
            sizes[part] = handle.store.peak_written_bytes
            handle.remove()
        assert tuple(part for part, size in sizes.items() if size) == parts
    handle = compress_(model, ["blocks.1"], code="int8", min_bytes=0)
    step(model, *batch)
    assert handle.store.peak_written_bytes == 0
    model.blocks.requires_grad_(False)
    step(model, *batch)
    assert handle.store.peak_written_bytes > 0


@pytest.mark.parametrize("code", CODES)
def test_a_tensor_changed_in_place_raises_as_it_does_without(code):
    class Exp(nn.Module):
        def forward(self, x):
            self.y = x.exp()
            return self.y * 1

    model = Exp()
    store = compress_(model, [model], code=code, region="any", min_bytes=0).store
    output = model(torch.randn(6, requires_grad=True) * 1)
    assert store.written_bytes > 0
    with torch.no_grad():
        model.y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()
    del model.y


@pytest.mark.parametrize(("code", "share"), [("bfloat16", 0.65), ("int8", 0.45)])
def test_the_measured_peak_falls(code, share):
    model, *batch = build(num_layers=8, width=64)

    def run():
        model.zero_grad(set_to_none=True)
        loss_of(model, *batch).backward()

    plain = measure(run, model, inputs=batch)
    handle = compress_(model, BLOCKS, code=code, min_bytes=0)
    treated = measure(run, model, inputs=batch)
    above = [report.peak_bytes - report.resident_bytes for report in (plain, treated)]
    assert above[1] < share * above[0]
    assert above[1] > bytes_of(handle.store, code)


def test_fake_tensors_are_coded_to_the_same_bytes():
    fake, sizes = fake_tensors(), []
    for mode, model in ((nullcontext(), build()[0]), (fake, build_fake(lambda: build()[0], fake))):
        with mode:
            batch = torch.zeros(3, 16, 8), torch.zeros(3, 16, dtype=torch.long)
            handle = compress_(model, BLOCKS, code="int8", min_bytes=0)
            kept = kept_bytes(lambda model=model, batch=batch: loss_of(model, *batch), model)
            sizes.append((handle.store.peak_written_bytes, kept))
    assert sizes[0] == sizes[1]


def test_copies_and_pickles_are_treated_and_remove_takes_it_off():
    model, *batch = build()
    expected, keys = step(model, *batch), list(model.state_dict())
    handle = compress_(model, BLOCKS, code="int8", min_bytes=0)
    treated = step(model, *batch)
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert list(clone.state_dict()) == keys
        assert equal(step(clone, *batch), treated)
    handle.remove()
    handle.remove()
    assert all("forward" not in vars(module) for module in model.modules())
    assert equal(step(model, *batch), expected)


def test_bad_requests_are_answered():
    model, *_ = build()
    with pytest.raises(ConfigError, match=r"code is 'int4'(.|\n)*bfloat16, int8"):
        compress_(model, BLOCKS, code="int4")
    with pytest.raises(ConfigError, match=r"region is 'all'(.|\n)*frozen, trainable, any"):
        compress_(model, BLOCKS, code="int8", region="all")
    with pytest.raises(ConfigError, match="min_bytes is -1"):
        compress_(model, BLOCKS, code="int8", min_bytes=-1)
    compress_(model, ["blocks.0"], code="int8")
    with pytest.raises(ConfigError, match=r"'blocks\.0' is compressed already"):
        compress_(model, BLOCKS, code="bfloat16")
