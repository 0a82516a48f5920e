from __future__ import annotations

import copy
import gc
import os
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from frostline.errors import ConfigError, StepError
from frostline.memory import Workload, estimate, measure
from frostline.ops import checkpoint_, lean_, offload, offload_
from small_transformer import Transformer, build, equal, kept_bytes, loss_of, step

BLOCKS = ("blocks.*",)


@pytest.fixture(params=["frozen", "trainable"])
def frozen(request):
    return request.param == "frozen"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_every_gradient_is_exact(tmp_path, dtype, dropout, frozen):
    model, *batch = build(dtype, frozen=frozen, dropout=dropout)
    expected = step(model, *batch)
    generator, state = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    handle = offload_(model, BLOCKS, folder=tmp_path, min_bytes=0)
    assert equal(step(model, *batch), expected)
    assert handle.store.peak_written_bytes > 0
    assert torch.equal(torch.get_rng_state(), generator)
    assert equal(list(model.state_dict().values()), list(state.values()))


def test_exact_under_autocast(tmp_path, frozen):
    model, *batch = build(frozen=frozen)
    expected = step(model, *batch, autocast=True)
    handle = offload_(model, BLOCKS, folder=tmp_path, min_bytes=0)
    assert equal(step(model, *batch, autocast=True), expected)
    assert handle.store.peak_written_bytes > 0


def test_exact_when_gradients_accumulate_over_graphs_that_are_alive_together(tmp_path):
    model, x, target = build(frozen=False)

    def accumulated(net):
        losses = [loss_of(net, x * factor, target) for factor in (1.0, 2.0)]
        losses[0].backward(retain_graph=True)
        losses[0].backward()
        losses[1].backward()
        return [parameter.grad for parameter in net.parameters()]

    treated = copy.deepcopy(model)
    offload_(treated, BLOCKS, folder=tmp_path, min_bytes=0)
    assert equal(accumulated(treated), accumulated(model))


def test_a_second_derivative_is_exact(tmp_path):
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4), nn.Sigmoid())
    x = torch.randn(5, 6)

    def penalty():
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(leaf).square().sum(), leaf, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), tuple(model.parameters()), allow_unused=True)[:3]

    expected = penalty()
    offload_(model, [model], folder=tmp_path, min_bytes=0)
    assert equal(penalty(), expected)


def test_around_and_inside_activation_checkpointing(tmp_path):
    model, x, target = build(dropout=0.2)
    expected = step(model, x, target)
    units = checkpoint_(model, BLOCKS)
    handle = offload_(model, BLOCKS, folder=tmp_path, min_bytes=0)
    assert equal(step(model, x, target), expected)
    assert handle.store.peak_written_bytes == 2 * 3 * 16 * 32 * 4  # what each checkpoint keeps: its input
    units.remove()
    handle.remove()

    offloaded = offload_(model, BLOCKS, folder=tmp_path, min_bytes=0)
    units = checkpoint_(model, BLOCKS)
    assert equal(step(model, x, target), expected)
    assert offloaded.store.peak_written_bytes == 0
    units.remove()

    def within(x):
        return checkpoint(type(model).forward, model, x, use_reentrant=False)

    torch.manual_seed(1)
    model.zero_grad()
    nn.functional.cross_entropy(within(x).flatten(0, 1), target.flatten()).backward()
    assert equal([p.grad for p in model.parameters() if p.grad is not None], expected[1:])
    assert offloaded.store.peak_written_bytes == 0


def test_together_with_lean_layers(tmp_path):
    torch.manual_seed(0)
    front = nn.Conv2d(3, 8, 3)
    back = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.MaxPool2d(2)).requires_grad_(False)
    model, x = nn.Sequential(front, back), torch.randn(2, 3, 16, 16)

    def gradient():
        front.zero_grad()
        model(x).square().sum().backward()
        return [front.weight.grad.clone()]

    expected = gradient()
    lean_(back)
    handle = offload_(model, ["1"], folder=tmp_path, min_bytes=0)
    assert equal(gradient(), expected)
    assert 0 < handle.store.peak_written_bytes < x.nbytes


def test_a_compiled_model_is_left_to_the_compiler_and_a_compiled_part_is_treated(tmp_path, monkeypatch):
    monkeypatch.setattr(pytest.importorskip("tqdm").tqdm, "monitor_interval", 0)  # torch's compiler starts it
    model, *batch = build()
    expected = step(model, *batch)
    handle = offload_(model, BLOCKS, folder=tmp_path, min_bytes=0)
    assert equal(step(torch.compile(model, backend="eager", fullgraph=True), *batch), expected)
    assert handle.store.peak_written_bytes == 0
    handle.remove()

    outer = nn.Sequential(torch.compile(model, backend="aot_eager", fullgraph=True))
    plain = step(outer, *batch)
    handle = offload_(outer, [outer], folder=tmp_path, min_bytes=0)
    assert equal(step(outer, *batch), plain)
    assert handle.store.peak_written_bytes > 0
    torch._dynamo.reset()


def test_what_it_keeps_and_where_the_rest_lies(tmp_path):
    model, *batch = build(num_layers=3)
    plain = kept_bytes(lambda: loss_of(model, *batch), model)
    handle = offload_(model, BLOCKS, folder=tmp_path, min_bytes=0)
    losses = []
    kept = kept_bytes(lambda: losses.append(loss_of(model, *batch)), model)
    away = handle.store.written_bytes
    assert kept + away == pytest.approx(plain, abs=3 * 16 * 32 * 4)  # one residual is saved in and after the blocks
    assert away > 0.8 * plain
    assert list(tmp_path.iterdir()) == []  # the file has no name
    losses.pop().backward()
    assert (handle.store.written_bytes, handle.store.peak_written_bytes) == (0, away)


def test_the_measured_peak_falls_and_the_predicted_one_is_the_same(tmp_path):
    def workload(model, batch, treat):
        if treat:
            offload_(model, BLOCKS, folder=tmp_path, min_bytes=0)

        def run():
            model.zero_grad(set_to_none=True)
            loss_of(model, *batch).backward()

        return Workload(step=run, model=model, inputs=batch)

    reports = []
    for treat in (False, True):
        model, *batch = build(num_layers=6)
        real = workload(model, batch, treat)
        reports.append(measure(real.step, model, inputs=batch))
    plain, treated = (report.peak_bytes - report.resident_bytes for report in reports)
    assert treated < plain / 3

    def fake(model):
        return workload(model, [torch.randn(3, 16, 8), torch.zeros(3, 16, dtype=torch.long)], True)

    def frozen():
        return build(num_layers=6)[0]

    assert estimate(frozen, fake).peak_bytes == pytest.approx(reports[1].peak_bytes, rel=0.005)


class Saves(nn.Module):
    """Multiplies by a frozen weight and twice by the same activation, through two views."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8), requires_grad=False)

    def forward(self, x):
        y = x * 2
        return (y.t() * self.weight.t()).t() * y + (y.view(64) * y.view(64)).view(8, 8)


def test_a_storage_goes_once_and_parameters_leaves_and_their_views_never(tmp_path):
    model = Saves()
    store = offload_(model, [model], folder=tmp_path, min_bytes=0).store
    written = []
    original = store.write
    store.write = lambda flat: written.append(flat.data_ptr()) or original(flat)
    leaf = torch.randn(8, 8, requires_grad=True)
    (model(leaf) * 1).sum().backward()
    assert len(written) == len(set(written)) == 2  # y, and the product that multiplies it
    expected = torch.autograd.grad((Saves.forward(model, other := leaf.detach().requires_grad_())).sum(), other)[0]
    assert torch.equal(leaf.grad, expected)

    class Square(nn.Module):
        def forward(self, x):
            return x.view(64) * x.t().reshape(64)

    square = Square()
    store = offload_(square, [square], folder=tmp_path, min_bytes=0).store
    output = square(leaf)
    assert store.written_bytes == leaf.nbytes  # the transposed copy, not the leaf's view
    del output


def test_only_storages_of_min_bytes_go(tmp_path):
    class Two(nn.Module):
        def forward(self, x):
            return x.exp()[:4].exp()

    x = torch.randn(8, requires_grad=True) * 1
    for min_bytes, expected in ((0, 32 + 16), (32, 32), (33, 0)):
        model = Two()
        store = offload_(model, [model], folder=tmp_path, min_bytes=min_bytes).store
        output = model(x)
        assert store.written_bytes == expected
        del output


@pytest.mark.parametrize("min_bytes", [0, 10**9], ids=["moved", "kept"])
@pytest.mark.parametrize("how", ["itself", "a view", "detached", "a view saved, the whole changed"])
def test_a_tensor_changed_in_place_raises_as_it_does_without(tmp_path, min_bytes, how):
    class Exp(nn.Module):
        def forward(self, x):
            self.y = x.exp()
            return (self.y[1:] * self.y[1:]) if "view saved" in how else self.y * 1

    def outcome(model):
        output = model(torch.randn(6, requires_grad=True) * 1)
        with torch.no_grad():
            target = {"a view": model.y[2:], "detached": model.y.detach()}.get(how, model.y)
            target.add_(1)
        with pytest.raises(RuntimeError) as error:
            output.sum().backward()
        del model.y
        return str(error.value).partition("[")[0]

    model = Exp()
    plain = outcome(model)
    offload_(model, [model], folder=tmp_path, min_bytes=min_bytes)
    assert outcome(model) == plain
    assert "modified by an inplace operation" in plain


def test_the_storage_changed_and_saved_again_goes_twice(tmp_path):
    class Again(nn.Module):
        def forward(self, x, y):
            a = x * y
            y.add_(1)
            return a, x * y

    model = Again()
    store = offload_(model, [model], folder=tmp_path, min_bytes=0).store
    leaf, factor = torch.randn(4, requires_grad=True), torch.arange(4.0)
    a, b = model(leaf, factor)
    assert store.written_bytes == 2 * factor.nbytes
    b.sum().backward()
    assert torch.equal(leaf.grad, factor)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        a.sum().backward()


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.t(),
        lambda x: x[1:, ::2],
        lambda x: x[:1].expand(6, 8),
        lambda x: torch.view_as_complex(x.unflatten(1, (4, 2))),
        lambda x: torch.view_as_complex(x.unflatten(1, (4, 2))).conj(),
        lambda x: x[:0],
        lambda x: x.sum(),
    ],
    ids=["transposed", "strided", "expanded", "complex", "conjugate", "empty", "scalar"],
)
def test_any_layout_comes_back(tmp_path, layout):
    class Square(nn.Module):
        def forward(self, x):
            y = layout(x.tanh())
            return torch.view_as_real(y * y).sum() if y.is_complex() else (y * y).sum()

    model, x = Square(), torch.randn(6, 8)

    def gradient():
        leaf = x.clone().requires_grad_()
        model(leaf).backward()
        return [leaf.grad]

    expected = gradient()
    offload_(model, [model], folder=tmp_path, min_bytes=0)
    assert equal(gradient(), expected)


def test_nothing_moves_where_nothing_is_recorded(tmp_path):
    model, x, _ = build()
    store = offload_(model, BLOCKS, folder=tmp_path, min_bytes=0).store
    with torch.no_grad():
        model(x)
    torch.func.grad(lambda scale: model(x * scale).sum())(torch.tensor(1.0))
    assert store.peak_written_bytes == 0


def test_the_file_does_not_grow_from_step_to_step_and_empties(tmp_path):
    model, *batch = build()
    store = offload_(model, BLOCKS, folder=tmp_path, min_bytes=0).store
    sizes = []
    for _ in range(3):
        loss = loss_of(model, *batch)
        sizes.append(os.fstat(store._file.fileno()).st_size)
        loss.backward()
        del loss
    assert len(set(sizes)) == 1
    assert sizes[0] == store.peak_written_bytes
    assert os.fstat(store._file.fileno()).st_size == 0


def test_the_handle_can_go_before_backward_and_nothing_is_left(tmp_path):
    model, x, target = build()
    expected = step(model, x, target)
    handle = offload_(model, BLOCKS, folder=tmp_path, min_bytes=0)
    model.zero_grad()
    loss = loss_of(model, x, target)
    descriptor, store = handle.store._file.fileno(), weakref.ref(handle.store)
    handle.remove()
    handle.remove()
    assert all("forward" not in vars(module) for module in model.modules())
    del handle
    loss.backward()
    assert equal([p.grad for p in model.parameters() if p.grad is not None], expected[1:])
    del loss
    gc.collect()
    assert store() is None
    with pytest.raises(OSError):
        os.fstat(descriptor)


def test_an_exception_in_a_unit_leaves_no_hook(tmp_path):
    class Broken(nn.Module):
        def forward(self, x):
            raise KeyError("broken")

    model = Broken()
    offload_(model, [model], folder=tmp_path)
    with pytest.raises(KeyError, match="broken"):
        model(torch.randn(3, requires_grad=True))
    assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None


def test_type_state_copy_and_pickle_stay_as_they_are(tmp_path):
    model, *batch = build()
    keys, expected = list(model.state_dict()), step(model, *batch)
    offload_(model, BLOCKS, folder=tmp_path, min_bytes=0)
    assert list(model.state_dict()) == keys
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(clone) is Transformer
        store = vars(clone.blocks[0])["forward"].function.store
        assert equal(step(clone, *batch), expected)
        assert store.peak_written_bytes > 0
        with pytest.raises(ConfigError, match=r"'blocks\.0' is offloaded already"):
            offload_(clone, BLOCKS, folder=tmp_path)


def test_on_the_cpu_host_memory_is_where_tensors_are():
    model, *batch = build()
    expected = step(model, *batch)
    handle = offload_(model, BLOCKS, min_bytes=0)
    assert equal(step(model, *batch), expected)
    assert handle.store.peak_written_bytes == 0


def test_the_copy_in_host_memory_is_a_copy():
    store = offload._Host(0, pin=True)
    flat = torch.randn(10)
    read = store.write(flat)
    expected = flat.clone()
    flat.zero_()
    assert torch.equal(read(), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("pin", [True, False])
def test_on_cuda_activations_move_to_host_memory_and_gradients_are_exact(pin):
    model, *batch = build(num_layers=6)
    model, batch = model.cuda(), [tensor.cuda() for tensor in batch]
    expected, peaks = step(model, *batch), []
    for treat in (False, True):
        if treat:
            handle = offload_(model, BLOCKS, min_bytes=0, pin=pin)
        torch.cuda.reset_peak_memory_stats()
        assert equal(step(model, *batch), expected)
        peaks.append(torch.cuda.max_memory_allocated())
    assert handle.store.peak_written_bytes > 0
    assert peaks[1] < peaks[0]


def test_bad_requests_are_answered_and_nothing_is_changed(tmp_path):
    model, *_ = build()
    with pytest.raises(ConfigError, match=r"called 'block\.\*'(.|\n)*nearest"):
        offload_(model, ["block.*"])
    with pytest.raises(ConfigError, match="'blocks' is a ModuleList"):
        offload_(model, ["blocks"])
    with pytest.raises(ConfigError, match="the Linear to offload is not in the model"):
        offload_(model, [nn.Linear(1, 1)])
    with pytest.raises(ConfigError, match="min_bytes is -1"):
        offload_(model, BLOCKS, min_bytes=-1)
    with pytest.raises(ConfigError, match=r"the folder to offload to is not there(.|\n)*nowhere"):
        offload_(model, BLOCKS, folder=tmp_path / "nowhere")
    assert all("forward" not in vars(module) for module in model.modules())
    offload_(model, ["blocks.1"])
    with pytest.raises(ConfigError, match=r"'blocks\.1' is offloaded already"):
        offload_(model, BLOCKS, folder=tmp_path)


def test_a_full_disk_is_one_clear_error(tmp_path, monkeypatch):
    model, *batch = build()
    offload_(model, BLOCKS, folder=tmp_path, min_bytes=0)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StepError, match=r"KiB of activations cannot be written: No space left on device(.|\n)*do "):
        loss_of(model, *batch)
