import gc
import sys
import weakref

import pytest
import torch
from torch import nn

from frostline.tracing import MemTrace


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))


def live_at_end(log):
    return sum(log.resident.values()) + sum(delta for _, delta in log.events)


def made(log, op):
    return [allocation for allocation in log.allocations if allocation.op == op]


def hook_counts(model):
    modules = torch.nn.modules.module
    optimizers = sys.modules["torch.optim.optimizer"]
    return [
        len(modules._global_forward_hooks),
        len(modules._global_forward_pre_hooks),
        len(modules._global_forward_hooks_always_called),
        len(optimizers._global_optimizer_pre_hooks),
        len(optimizers._global_optimizer_post_hooks),
        *(len(p._post_accumulate_grad_hooks or ()) for p in model.parameters()),
    ]


def test_each_storage_is_logged_once_and_its_release_too():
    model = net()
    with MemTrace(model) as trace:
        a = torch.zeros(100)
        b = a.view(10, 10).t()[1:]
        c = b + 1
        del a, b, c
    (zeros,) = made(trace.log, "aten.zeros")
    number = trace.log.allocations.index(zeros)
    assert [delta for i, delta in trace.log.events if i == number] == [400, -400]
    assert live_at_end(trace.log) == sum(p.nbytes for p in model.parameters())


def test_what_an_operator_reads_first_was_there_before():
    model, outside = net(), torch.zeros(50)
    other = nn.Parameter(torch.zeros(3))
    with MemTrace(model) as trace:
        outside + 1
        other + 1
        torch.tensor([1.0, 2.0]) + 1
    resident = [trace.log.allocations[number] for number in trace.log.resident]
    assert [(a.kind, a.num_bytes) for a in resident[-2:]] == [("inputs", 200), ("parameters", 12)]
    (fresh,) = made(trace.log, "aten.lift_fresh")
    assert fresh.kind == "step" and fresh.num_bytes == 8


def test_a_storage_that_grows_is_followed():
    model = net()
    with MemTrace(model) as trace:
        tensor = torch.zeros(10)
        tensor.resize_(30)
    (zeros,) = made(trace.log, "aten.zeros")
    assert zeros.num_bytes == 120
    assert live_at_end(trace.log) - sum(trace.log.resident.values()) == 120


def test_kinds_phases_modules_and_lines():
    model, x = net(), torch.randn(2, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with MemTrace(model, [optimizer], x) as trace:
        model(x).sum().backward()
        optimizer.step()
    (tanh,) = made(trace.log, "aten.tanh")
    assert (tanh.phase, tanh.module, tanh.saved, tanh.shape) == ("forward", "1", True, (2, 16))
    assert tanh.line.startswith("test_memtrace.py:")
    (tanh_backward,) = made(trace.log, "aten.tanh_backward")
    assert (tanh_backward.phase, tanh_backward.module, tanh_backward.saved) == ("backward", "", False)
    sizes = dict.fromkeys(("parameters", "gradients", "optimizer state"), sum(p.nbytes for p in model.parameters()))
    for kind, num_bytes in sizes.items():
        assert sum(a.num_bytes for a in trace.log.allocations if a.kind == kind) == num_bytes
    states = [a for a in trace.log.allocations if a.kind == "optimizer state"]
    assert {a.phase for a in states} == {"optimizer"}


def test_a_gradient_that_only_an_optimizer_knows_is_recognised():
    token = nn.Parameter(torch.ones(5))
    optimizer = torch.optim.SGD([token], lr=0.1)
    token.requires_grad_(False)
    with MemTrace(net(), [optimizer]) as trace:
        token.requires_grad_(True)
        token.square().sum().backward()
        optimizer.step()
    assert sum(a.num_bytes for a in trace.log.allocations if a.kind == "gradients") == 20


@pytest.mark.parametrize("fails", [False, True])
def test_every_hook_is_gone_afterwards(fails):
    model = net()
    before = hook_counts(model)

    def step():
        with MemTrace(model):
            model(torch.randn(2, 7 if fails else 8)).sum().backward()

    if fails:
        with pytest.raises(RuntimeError, match="shapes"):
            step()
    else:
        step()
    assert hook_counts(model) == before
    assert torch._C._autograd._top_saved_tensors_default_hooks(True) is None


def test_a_graph_dropped_without_backward_is_freed_at_once_and_so_is_the_model():
    model = net()
    gc.disable()
    try:
        with MemTrace(model) as trace:
            resident = live_at_end(trace.log)
            model(torch.randn(2, 8))
            assert live_at_end(trace.log) == resident
        gone = weakref.ref(model), weakref.ref(trace)
        del model, trace
        assert [reference() for reference in gone] == [None, None]
    finally:
        gc.enable()


def test_an_in_place_change_of_a_saved_tensor_is_still_an_error():
    weight = nn.Parameter(torch.ones(3))

    def step():
        product = weight * 2
        loss = (product * product).sum()
        product.add_(1)
        loss.backward()

    message = "needed for gradient computation has been modified by an inplace operation"
    with pytest.raises(RuntimeError, match=message):
        step()
    with MemTrace(net()), pytest.raises(RuntimeError, match=message):
        step()


def test_gradients_are_the_same_with_and_without_a_trace_also_the_second_ones():
    model = nn.Sequential(nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Flatten(), net()[:2])
    x = torch.randn(4, 1, 4, requires_grad=True)

    def gradients():
        output = model(x).square().sum()
        (slope,) = torch.autograd.grad(output, x, create_graph=True)
        (output + slope.square().sum()).backward()
        found = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        return found

    plain = gradients()
    with MemTrace(model):
        traced = gradients()
    assert all(torch.equal(p, q) for p, q in zip(plain, traced, strict=True))


def test_inference_mode_hides_nothing():
    model, x = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)).requires_grad_(False), torch.randn(4, 8)
    logs = []
    for context in (torch.no_grad, torch.inference_mode):
        with MemTrace(model, inputs=x) as trace, context():
            model(x)
        logs.append(trace.log)
    assert logs[0].events == logs[1].events and logs[0].num_ops == logs[1].num_ops


def test_a_frozen_transformer_keeps_its_fused_path():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval().requires_grad_(False)
    with MemTrace(layer) as trace:
        layer(torch.randn(2, 4, 16))
    assert made(trace.log, "aten._transformer_encoder_layer_fwd")


def test_a_tensor_without_a_storage_is_reported():
    with MemTrace(net()) as trace:
        torch.eye(3).to_mkldnn()
    assert trace.log.not_seen == {"torch._mkldnn tensors"}
