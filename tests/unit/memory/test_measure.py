import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from frostline.memory import measure
from frostline.memory.analysis import CATEGORIES, thin
from frostline.records import MemoryReport


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))


def transformer():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.1, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def trainer(model, x, zero="start"):
    optimizer = torch.optim.AdamW(model.parameters())

    def step():
        if zero == "start":
            optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        if zero == "end":
            optimizer.zero_grad()
        return loss

    return step, optimizer


def num_bytes(tensors):
    return sum(tensor.nbytes for tensor in tensors)


def allocator_peak(step):
    """Peak of torch's own CPU allocator over two steps, above what was there."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize(("build", "shape"), [(mlp, (128, 64)), (transformer, (8, 32, 64))])
@pytest.mark.parametrize("zero", ["start", "end", "never"])
def test_the_peak_is_that_of_the_allocator(build, shape, zero):
    model, x = build(), torch.randn(shape)
    step, optimizer = trainer(model, x, zero)
    report = measure(step, model, optimizers=[optimizer], inputs=x)
    truth = allocator_peak(step) + num_bytes([*model.parameters(), x])
    assert report.peak_bytes == pytest.approx(truth, rel=0.01)


def test_the_report_says_what_the_bytes_are():
    model, x = mlp(), torch.randn(128, 64)
    step, optimizer = trainer(model, x)
    report = measure(step, model, optimizers=[optimizer], inputs=x)
    weights, counters = num_bytes(model.parameters()), 4 * 4
    assert tuple(report.by_category) == CATEGORIES
    assert sum(report.by_category.values()) == report.peak_bytes
    assert report.by_category["parameters"] == weights
    assert report.by_category["optimizer state"] == 2 * weights + counters
    assert report.by_category["inputs"] == x.nbytes
    assert report.by_category["saved for backward"] == 128 * 256 * 4
    assert report.resident_bytes == 4 * weights + counters + x.nbytes
    assert sum(report.by_module.values()) <= report.peak_bytes
    assert report.by_module["1"] == 128 * 256 * 4
    assert report.peak_at == "backward · aten.threshold_backward (128, 256)"
    assert report.peak_line.startswith("test_measure.py:")
    assert (report.method, report.device, report.allocator) == ("measured", "cpu", None)
    assert report.timeline[0].live_bytes == report.resident_bytes
    assert max(point.live_bytes for point in report.timeline) == report.peak_bytes


def test_the_timeline_says_what_the_bytes_are_at_every_point():
    model, x = mlp(), torch.randn(128, 64)
    step, optimizer = trainer(model, x)
    report = measure(step, model, optimizers=[optimizer], inputs=x)
    series = report.timeline_by_category
    assert tuple(series) == CATEGORIES
    live = [point.live_bytes for point in report.timeline]
    assert [sum(at_point) for at_point in zip(*series.values(), strict=True)] == live
    peak = live.index(report.peak_bytes)
    assert {name: values[peak] for name, values in series.items()} == report.by_category
    assert set(series["parameters"]) == {num_bytes(model.parameters())}
    assert max(series["gradients"]) == num_bytes(model.parameters())
    assert series["saved for backward"][0] == series["saved for backward"][-1] == 0


def test_a_thinned_timeline_by_category_still_sums():
    blocks = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.GELU()) for _ in range(40)))
    x = torch.randn(16, 64)
    report = measure(lambda: blocks(x).sum().backward(), blocks, inputs=x)
    assert 200 < len(report.timeline) <= 400 < report.timeline[-1].event
    sums = [sum(at_point) for at_point in zip(*report.timeline_by_category.values(), strict=True)]
    assert sums == [point.live_bytes for point in report.timeline]


def test_gradients_that_stay_between_steps_are_resident():
    reports = {}
    for zero in ("end", "never"):
        model, x = mlp(), torch.randn(128, 64)
        step, optimizer = trainer(model, x, zero)
        reports[zero] = measure(step, model, optimizers=[optimizer], inputs=x)
    weights = num_bytes(mlp().parameters())
    assert reports["never"].by_category["gradients"] == weights
    assert reports["never"].resident_bytes - reports["end"].resident_bytes == weights


def test_what_the_step_keeps_from_before_is_counted():
    model, kept = mlp(), {}

    def step():
        kept["features"] = torch.zeros(1000)
        model(torch.ones(1, 64))

    report = measure(step, model)
    assert report.resident_bytes == num_bytes(model.parameters()) + 4000


def test_the_peak_of_a_frozen_forward_stands_at_its_module():
    model = nn.ModuleDict({"tower": nn.Sequential(nn.Linear(8, 512), nn.GELU())}).requires_grad_(False)
    report = measure(lambda: model["tower"](torch.ones(4, 8)), model)
    assert report.peak_at == "forward · tower.1 · aten.gelu (4, 512)"
    assert report.by_category["saved for backward"] == 0


def test_a_step_that_allocates_nothing_peaks_before_it_starts():
    report = measure(lambda: None, mlp())
    assert report.peak_at == "before the step" and report.peak_bytes == report.resident_bytes


def test_model_and_optimizer_are_as_they_were():
    model, x = mlp(), torch.randn(4, 64)
    step, optimizer = trainer(model, x)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    measure(step, model, optimizers=[optimizer])
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not optimizer.state and all(parameter.grad is None for parameter in model.parameters())


def test_a_long_timeline_keeps_its_ends_and_its_extremes():
    live = [(i * 7919) % 1000 for i in range(5000)]
    live[1234], live[4321] = 99_999, -1
    points = thin(live, num_points=100)
    assert len(points) <= 100 and [p.event for p in points] == sorted({p.event for p in points})
    assert (points[0].event, points[-1].event) == (0, 4999)
    assert {99_999, -1} <= {point.live_bytes for point in points}
    assert isinstance(measure(lambda: None, mlp()), MemoryReport)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_cuda_the_allocators_own_counters_stand_beside_it():
    model, x = mlp().cuda(), torch.randn(128, 64, device="cuda")
    step, optimizer = trainer(model, x)
    report = measure(step, model, optimizers=[optimizer], inputs=x)
    assert report.device == "cuda" and report.allocator is not None
    assert report.peak_bytes <= report.allocator.peak_allocated_bytes <= report.allocator.peak_reserved_bytes
