import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from frostline.errors import StepError
from frostline.memory import Workload, estimate, estimate_by_batches, measure


def workload(batch_size, model=None, loss_of=lambda y: y.square().mean(), shape=(10, 16)):
    model = model or nn.LSTM(16, 32, batch_first=True)
    x, optimizer = torch.randn(batch_size, *shape), torch.optim.AdamW(model.parameters())

    def step():
        y = model(x)
        loss_of(y[0] if isinstance(y, tuple) else y).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Workload(step=step, model=model, optimizers=(optimizer,), inputs=x)


def measured(work):
    return measure(work.step, work.model, optimizers=work.optimizers, inputs=work.inputs)


def test_two_small_batches_tell_a_large_one_to_the_byte():
    report = estimate_by_batches(workload, target=64, small=(16, 32))
    truth = measured(workload(64))
    for name in ("peak_bytes", "resident_bytes", "by_category", "by_module", "timeline", "peak_at"):
        assert getattr(report, name) == getattr(truth, name), name
    assert (report.method, report.covers) == ("predicted", "one step at batch size 64")
    assert report.assumes == ("every storage is a + c * batch_size bytes, from real steps at batch sizes 16 and 32",)


def test_a_peak_that_moves_to_another_phase_is_followed_and_told():
    def wide(batch_size):
        return workload(batch_size, nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64)), shape=(64,))

    report = estimate_by_batches(wide, target=4096, small=(2, 4))
    assert report.peak_bytes == measured(wide(4096)).peak_bytes
    assert report.assumes[1] == "the peak moves from the optimizer at batch size 4 to the backward"


def test_estimate_falls_back_to_it_and_says_why():
    lstm = lambda: nn.LSTM(16, 32, batch_first=True)  # noqa: E731
    arguments = (lstm, lambda model: workload(64, model))
    report = estimate(*arguments, workload_for_batch=workload, batch_size=64)
    assert report.peak_bytes == pytest.approx(measured(workload(64)).peak_bytes, rel=0.05)  # oneDNN pads
    assert report.peak_bytes == estimate_by_batches(workload, target=64).peak_bytes
    exact = estimate(*arguments, workload_for_batch=workload, batch_size=64, small_batches=(16, 32))
    assert exact.peak_bytes == measured(workload(64)).peak_bytes
    assert "fake tensors did not do: LSTM runs in a oneDNN kernel" in report.assumes[-1]
    with pytest.raises(StepError, match=r"cuDNN kernel.*and the small batches ran on cpu, not on cuda"):
        estimate(*arguments, workload_for_batch=workload, batch_size=64, device="cuda")
    with pytest.raises(StepError, match="workload_for_batch and batch_size go together"):
        estimate(*arguments, batch_size=64)


def test_what_grows_faster_than_the_batch_is_refused():
    def contrastive(batch_size):
        return workload(
            batch_size,
            nn.Linear(16, 4),
            lambda y: F.cross_entropy(y @ y.T, torch.arange(len(y))),
            shape=(16,),
        )

    with pytest.raises(StepError, match=re.escape("is not a + c * batch_size bytes, with a and c no less than 0")):
        estimate_by_batches(contrastive, target=512)


def test_steps_that_do_not_do_the_same_are_refused():
    def turning(batch_size):
        return workload(batch_size, nn.Linear(16, 4), lambda y: (y.relu() if batch_size > 8 else y).sum(), shape=(16,))

    with pytest.raises(StepError) as raised:
        estimate_by_batches(turning, target=64)
    assert "the steps at batch sizes 8 and 16 do not allocate the same" in str(raised.value)
    assert "aten.relu" in str(raised.value) and "where  test_batches.py:" in str(raised.value)


@pytest.mark.parametrize("small", [(4, 4), (0, 4), (8, 4)])
def test_small_batches_are_two_and_in_order(small):
    with pytest.raises(StepError, match="small must be two batch sizes"):
        estimate_by_batches(workload, target=64, small=small)
