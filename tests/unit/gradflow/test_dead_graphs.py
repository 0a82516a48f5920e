"""FL512 on small steps: which graphs are dead, and how many bytes they hold."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from frostline.gradflow import audit
from frostline.memory import measure
from frostline.tracing import fake_tensors


class Two(nn.Module):
    """A used and an unused network on one input."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = (nn.Sequential(nn.Linear(8, 256), nn.Tanh(), nn.Linear(256, 1)) for _ in range(2))


def build():
    torch.manual_seed(0)
    model = Two()
    return model, torch.optim.SGD(model.parameters(), lr=0.1), torch.randn(512, 8)


def dead_in(step, model, optimizer, **options):
    return [finding for finding in audit(step, model, optimizer, **options).findings if finding.code == "FL512"]


@pytest.mark.parametrize("is_fake", [False, True])
def test_the_bytes_are_what_the_peak_loses_without_the_graph(is_fake):
    with fake_tensors() if is_fake else torch.enable_grad():
        model, optimizer, x = build()

        def step(record=True):
            optimizer.zero_grad()
            with torch.set_grad_enabled(record):
                extra = model.unused(x)
            loss = model.used(x).square().mean()
            loss.backward()
            optimizer.step()
            return loss.detach(), extra.detach()

        (found,) = dead_in(step, model, optimizer)
        assert found.parameters == tuple(f"unused.{layer}.{kind}" for layer in (0, 2) for kind in ("bias", "weight"))
        assert found.num_bytes == 512 * 256 * 4  # what Tanh saves, and the next layer too; both nets save x
        peaks = [measure(lambda r=r: step(r), model, optimizers=(optimizer,)).peak_bytes for r in (True, False)]
        assert peaks[0] - peaks[1] == pytest.approx(found.num_bytes, rel=0.01)


def test_a_graph_that_a_later_backward_uses_is_not_dead():
    model, optimizer, x = build()

    def step():
        optimizer.zero_grad()
        first, second = model.used(x).mean(), model.unused(x).square().mean()
        first.backward()
        second.backward()
        optimizer.step()

    assert dead_in(step, model, optimizer, steps=2) == []


def test_a_graph_that_is_dropped_or_small_is_not_held():
    model, optimizer, x = build()

    def step(keep):
        optimizer.zero_grad()
        extra = model.unused(x[:keep])
        if not keep:
            del extra
        F.mse_loss(model.used(x), x[:, :1]).backward()
        optimizer.step()

    assert dead_in(lambda: step(2), model, optimizer) == []
    assert dead_in(lambda: step(0), model, optimizer) == []
    assert dead_in(lambda: step(256), model, optimizer)


def test_a_second_use_of_a_trained_module_is_found_too():
    model, optimizer, x = build()
    kept = []

    def step():
        optimizer.zero_grad()
        kept[:] = [model.used(x + 1)]
        model.used(x).square().mean().backward()
        optimizer.step()

    (found,) = dead_in(step, model, optimizer)
    assert set(found.parameters) <= {name for name, _ in model.named_parameters() if name.startswith("used.")}


def test_a_metric_with_a_graph_is_nobodys_finding():
    model, optimizer, x = build()

    def step():
        optimizer.zero_grad()
        y = model.used(x)
        metric = (y - 1).abs().mean()
        y.square().mean().backward()
        optimizer.step()
        return metric

    assert dead_in(step, model, optimizer) == []
