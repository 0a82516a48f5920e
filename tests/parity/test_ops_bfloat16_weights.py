from __future__ import annotations

import copy
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from frostline.errors import CheckpointError, ConfigError, StepError
from frostline.memory import Workload, estimate, measure
from frostline.ops import checkpoint_, chunked_cross_entropy, lean_, store_bfloat16_
from small_transformer import build, equal, loss_of, step

LAYERS = {
    "linear": (lambda: nn.Linear(12, 7), (2, 5, 12)),
    "linear rows": (lambda: nn.Linear(12, 7, bias=False), (5, 12)),
    "linear vector": (lambda: nn.Linear(12, 7), (12,)),
    "vocabulary head": (lambda: nn.Linear(8, 300), (4, 8)),
    "conv 1d": (lambda: nn.Conv1d(6, 8, 3, 2, 1), (2, 6, 19)),
    "conv": (lambda: nn.Conv2d(6, 8, 3, padding=1), (2, 6, 9, 9)),
    "conv groups": (lambda: nn.Conv2d(6, 12, 3, dilation=2, groups=3, bias=False), (2, 6, 9, 9)),
    "conv reflect": (lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"), (2, 6, 9, 9)),
    "conv channels last": (lambda: nn.Conv2d(6, 8, 3).to(memory_format=torch.channels_last), (2, 6, 9, 9)),
    "conv 3d": (lambda: nn.Conv3d(3, 8, 3, 2, 1), (2, 3, 7, 7, 7)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(6, 8, 3, 2, 1, 1), (2, 6, 9)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 8, 3, 2, 1, 1), (2, 6, 9, 9)),
    "transposed 3d": (lambda: nn.ConvTranspose3d(3, 8, 3, 2, 1), (2, 3, 5, 5, 5)),
}  # fmt: skip


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "weights.safetensors"


def gradients(layer, x):
    leaf = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(leaf)
    output.float().square().sum().backward()
    grads = [parameter.grad for parameter in layer.parameters() if parameter.requires_grad]
    layer.zero_grad()
    return [output.detach(), leaf.grad, *grads]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_output_and_gradients_are_those_of_autocast(path, name, dtype):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer, x = make().requires_grad_(False), torch.randn(shape).to(dtype)
    expected, state, weight = gradients(layer, x), copy.deepcopy(layer.state_dict()), layer.weight
    strides = weight.stride()
    handle = store_bfloat16_(layer, path)
    assert handle.units == ("",)
    assert handle.num_bytes_freed == sum(2 * p.numel() for p in layer.parameters())
    assert layer.weight is weight
    assert (weight.dtype, weight.stride()) == (torch.bfloat16, strides)
    assert equal(gradients(layer, x), expected)
    assert equal(list(layer.state_dict().values()), list(state.values()))
    handle.remove()
    handle.remove()
    assert (layer.weight is weight, weight.dtype, weight.stride()) == (True, torch.float32, strides)
    assert equal(list(layer.parameters()), list(state.values()))
    assert "forward" not in vars(layer)
    assert not layer._state_dict_hooks
    assert not layer._load_state_dict_pre_hooks


@pytest.mark.parametrize("name", LAYERS)
def test_lean_layers_first_is_exact(path, name):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer, x = make().requires_grad_(False), torch.randn(shape)
    expected = gradients(layer, x)
    assert lean_(layer).units == ("",)
    store_bfloat16_(layer, path)
    assert equal(gradients(layer, x), expected)


@pytest.mark.parametrize("treatment", ["alone", "checkpointed", "lean", "lean before"])
def test_a_frozen_transformer_is_exact(path, treatment):
    model, *batch = build(dropout=0.1)
    expected = step(model, *batch, autocast=True)
    if treatment == "lean before":
        lean_(model.blocks)
    handle = store_bfloat16_(model, path)
    assert len(handle.units) == 2 * 4 + 1
    assert handle.left["front"] == "trains"
    if treatment == "checkpointed":
        checkpoint_(model, ["blocks.*"])
    if treatment == "lean":
        lean_(model.blocks)
    assert equal(step(model, *batch, autocast=True), expected)


def test_a_trainable_bias_stays_and_has_its_gradient(path):
    torch.manual_seed(0)
    layer, x = nn.Linear(12, 7), torch.randn(5, 12)
    layer.weight.requires_grad_(False)
    expected = gradients(layer, x)
    store_bfloat16_(layer, path)
    assert layer.bias.dtype == torch.float32
    assert len(expected) == 3
    assert equal(gradients(layer, x), expected)


def test_gradients_accumulate(path):
    model, x, target = build()

    def accumulated():
        model.zero_grad()
        for factor in (1.0, 2.0):
            loss_of(model, x * factor, target, autocast=True).backward()
        return [model.front.weight.grad.clone(), model.front.bias.grad.clone()]

    expected = accumulated()
    store_bfloat16_(model, path)
    assert equal(accumulated(), expected)


def test_compiled(path, monkeypatch):
    monkeypatch.setattr(pytest.importorskip("tqdm").tqdm, "monitor_interval", 0)  # torch's compiler starts it
    model, *batch = build()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    expected = step(compiled, *batch, autocast=True)
    torch._dynamo.reset()
    store_bfloat16_(model, path)
    assert equal(step(torch.compile(model, backend="aot_eager", fullgraph=True), *batch, autocast=True), expected)
    torch._dynamo.reset()


def test_a_head_read_by_the_chunked_loss_is_exact(path):
    model, x, target = build()

    def run():
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = chunked_cross_entropy(model.front(x), model.head.weight, target, bias=model.head.bias)
        loss.backward()
        return [loss.detach(), model.front.weight.grad]

    expected = run()
    store_bfloat16_(model, path)
    assert equal(run(), expected)


def test_outside_autocast_to_bfloat16_it_is_refused(path):
    layer, x = nn.Linear(4, 3).requires_grad_(False), torch.randn(2, 4)
    handle = store_bfloat16_(layer, path)
    message = r"a Linear whose weight is held in bfloat16 was called outside autocast to bfloat16(.|\n)*remove\(\)"
    with pytest.raises(StepError, match=message):
        layer(x)
    with pytest.raises(StepError, match=message), torch.autocast("cpu", torch.float16):
        layer(input=x)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x)
        with pytest.raises(StepError, match=message), torch.autocast("cpu", enabled=False):
            layer(x)
    handle.remove()
    layer(x)


def test_unfrozen_or_converted_it_is_refused_and_remove_brings_the_values_back(path):
    layer, x = nn.Linear(4, 3).requires_grad_(False), torch.randn(2, 4)
    before = copy.deepcopy(layer.state_dict())
    handle = store_bfloat16_(layer, path)
    layer.requires_grad_(True)
    with pytest.raises(StepError, match=r"was unfrozen(.|\n)*remove\(\)"), torch.autocast("cpu", torch.bfloat16):
        layer(x)
    layer.requires_grad_(False).float()
    with pytest.raises(StepError, match=r"was converted to torch\.float32"), torch.autocast("cpu", torch.bfloat16):
        layer(x)
    handle.remove()
    assert equal(list(layer.parameters()), list(before.values()))


def test_what_is_left_and_why(path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(9, 4)
            self.head, self.other_head = nn.Linear(4, 9, bias=False), nn.Linear(4, 9)
            self.head.weight = self.embed.weight
            self.other_head.bias = nn.Parameter(torch.zeros(18)[:9])
            self.double = nn.Linear(4, 4).double()
            self.attention = nn.MultiheadAttention(4, 2)
            self.old = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
            self.twice = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
            self.twice[1].weight = self.twice[0].weight
            self.open = nn.Linear(4, 4)
            self.norm = nn.LayerNorm(4)

    model = Tied().requires_grad_(False)
    model.open.requires_grad_(True)
    before = {name: parameter.dtype for name, parameter in model.named_parameters()}
    handle = store_bfloat16_(model, path)
    assert handle.units == ("twice.0", "twice.1")
    left = handle.left
    assert left["head"] == "shares a weight with 'embed'"
    assert left["other_head"] == "its parameters are parts of a larger memory"
    assert left["double"] == "is torch.float64"
    assert left["open"] == "trains"
    assert all("does not follow autocast" in left[name] for name in ("embed", "attention", "norm"))
    assert "attention.out_proj" in left
    assert "old" in left or "old.parametrizations.weight" in left
    changed = {name for name, parameter in model.named_parameters() if parameter.dtype != before[name]}
    assert changed == {"twice.0.weight", "twice.0.bias", "twice.1.bias"}
    assert store_bfloat16_(model, path.with_name("again")).units == ()
    handle.remove()
    assert before == {name: parameter.dtype for name, parameter in model.named_parameters()}


def test_a_layer_that_shares_with_a_layer_left_is_left_too(path):
    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.first, self.second = nn.Embedding(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.first.weight = self.embed.weight
            self.second.bias = self.first.bias

    handle = store_bfloat16_(Chain().requires_grad_(False), path)
    assert handle.units == ()
    assert handle.left["second"] == "shares a weight with 'first'"


def test_the_state_dict_saves_and_loads_as_before(path, tmp_path):
    model, *batch = build()
    before, expected = copy.deepcopy(model.state_dict()), step(model, *batch, autocast=True)
    store_bfloat16_(model, path)
    torch.save(model.state_dict(), tmp_path / "checkpoint")
    saved = torch.load(tmp_path / "checkpoint")
    assert list(saved) == list(before)
    assert equal(list(saved.values()), list(before.values()))
    fresh, *_ = build(num_layers=2)
    fresh.load_state_dict(saved)
    model.load_state_dict(saved)
    assert equal(step(model, *batch, autocast=True), expected)

    other = {name: value + 1 for name, value in saved.items()}
    with pytest.raises(CheckpointError, match=r"'blocks\.0\.qkv\.weight' to be loaded is another weight(.|\n)*remove"):
        model.load_state_dict(other)
    trainable = {name: value for name, value in other.items() if name.startswith("front")}
    model.load_state_dict(trainable, strict=False)
    assert torch.equal(model.front.weight, other["front.weight"])


def test_copies_and_pickles_stay_stored(path):
    model, *batch = build()
    before = copy.deepcopy(model.state_dict())
    expected = step(model, *batch, autocast=True)
    handle = store_bfloat16_(model, path)
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert clone.head.weight.dtype == torch.bfloat16
        assert equal(step(clone, *batch, autocast=True), expected)
        assert equal(list(clone.state_dict().values()), list(before.values()))
        with pytest.raises(StepError, match="outside autocast"):
            clone(batch[0])
    handle.remove()
    assert equal(list(model.state_dict().values()), list(before.values()))


def test_the_file_is_plain_safetensors_used_again_and_never_overwritten(path):
    model, *_ = build()
    before = copy.deepcopy(model.state_dict())
    handle = store_bfloat16_(model, path)
    for name, values in load_file(path).items():
        assert torch.equal(values, before[name])
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    handle.remove()
    stamp = path.stat().st_mtime_ns
    store_bfloat16_(model, path).remove()
    assert path.stat().st_mtime_ns == stamp
    with torch.no_grad():
        model.head.weight.add_(1)
    content = path.read_bytes()
    for foreign in (content, content[:100], b"something else"):
        path.write_bytes(foreign)
        with pytest.raises(CheckpointError, match=r"holds something else(.|\n)*another path"):
            store_bfloat16_(model, path)
        assert path.read_bytes() == foreign
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert "forward" not in vars(model.head)


def test_a_lost_or_damaged_file_is_noticed(path):
    model, *_ = build()
    handle = store_bfloat16_(model, path)
    good = path.read_bytes()
    path.write_bytes(good[:-400] + bytes(400))
    with pytest.raises(CheckpointError, match="one of the two was changed"):
        handle.remove()
    path.unlink()
    with pytest.raises(CheckpointError, match=r"cannot be read(.|\n)*bring the file back"):
        model.state_dict()
    with pytest.raises(CheckpointError, match="cannot be read"):
        handle.remove()
    assert model.head.weight.dtype == torch.bfloat16
    path.write_bytes(good)
    handle.remove()
    assert model.head.weight.dtype == torch.float32


def test_too_small_a_disk_is_refused_before_anything_changes(path, monkeypatch):
    model, *_ = build()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(ConfigError, match=r"the weights need .* KiB, the disk has 1000 B free"):
        store_bfloat16_(model, path)
    assert list(path.parent.iterdir()) == []
    assert model.head.weight.dtype == torch.float32


def test_resident_bytes_halve_and_the_peak_falls_also_on_fake_tensors(path):
    def run(model, x, target):
        def step():
            model.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(x)
            F.cross_entropy(logits.float().flatten(0, 1), target.flatten()).backward()

        return step

    model, *batch = build(num_layers=4, width=64)
    plain = measure(run(model, *batch), model, inputs=batch)
    handle = store_bfloat16_(model, path)
    treated = measure(run(model, *batch), model, inputs=batch)
    assert plain.resident_bytes - treated.resident_bytes == handle.num_bytes_freed
    assert plain.peak_bytes - treated.peak_bytes > handle.num_bytes_freed

    def workload(model):
        handle = store_bfloat16_(model, path.with_name("never"))
        assert isinstance(model.head.weight, FakeTensor)
        handle.remove()
        assert model.head.weight.dtype == torch.float32
        store_bfloat16_(model, path.with_name("never"))
        batch = torch.randn(3, 16, 8), torch.zeros(3, 16, dtype=torch.long)
        return Workload(step=run(model, *batch), model=model, inputs=batch)

    predicted = estimate(lambda: build(num_layers=4, width=64)[0], workload)
    assert predicted.resident_bytes == treated.resident_bytes
    assert predicted.peak_bytes == pytest.approx(treated.peak_bytes, rel=0.005)
    assert not path.with_name("never").exists()
