import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from frostline.tracing.steps import StepWatch


class Log:
    """What a watch tells, and what the program does, in order."""

    def __init__(self):
        self.lines = []
        self.watch = StepWatch(began=lambda: self.lines.append("began"), ended=self.ended)

    def ended(self, optimizers):
        self.lines.append(f"ended {len(optimizers)}")


def net():
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh())


def sgd(*models):
    return torch.optim.SGD([p for model in models for p in model.parameters()], lr=0.1)


def loss_of(model):
    return model(torch.ones(2, 3)).sum()


@pytest.mark.parametrize("zero", ["start", "end", "module", "never"])
def test_a_plain_loop(zero):
    model, log = net(), Log()
    optimizer = sgd(model)
    with log.watch:
        for _ in range(3):
            if zero == "start":
                optimizer.zero_grad()
            loss = loss_of(model)
            if zero == "module":
                model.zero_grad()
            loss.backward()
            optimizer.step()
            log.lines.append("stepped")
            if zero == "end":
                optimizer.zero_grad()
    steps = ["began", "stepped", "ended 1"] * 3
    # The next step begins with a `zero_grad` at the loop's end.
    assert log.lines == ([*steps, "began"] if zero == "end" else steps)


def test_accumulated_backwards_are_one_step():
    model, log = net(), Log()
    optimizer = sgd(model)
    with log.watch:
        for i in range(6):
            loss_of(model).backward()
            if i % 3 == 2:
                optimizer.step()
                optimizer.zero_grad()
    assert log.lines.count("ended 1") == 2


def test_two_optimizers_of_one_backward_are_one_step_and_two_losses_two():
    a, b, log = net(), net(), Log()
    optimizers = sgd(a), sgd(b)
    with log.watch:
        (loss_of(a) + loss_of(b)).backward()
        for optimizer in optimizers:
            optimizer.step()
        for model, optimizer in zip((a, b), optimizers, strict=True):
            loss_of(model).backward()
            optimizer.step()
    assert [line for line in log.lines if line != "began"] == ["ended 2", "ended 1", "ended 1"]


def test_a_skipped_update_ends_a_step_of_no_optimizer():
    model, log = net(), Log()
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    with log.watch:
        for factor in (float("inf"), 1.0):
            optimizer.zero_grad()
            scaler.scale(loss_of(model) * factor).backward()
            scaler.step(optimizer)
            scaler.update()
    assert log.lines == ["began", "ended 0", "began", "ended 1"]


def test_what_is_no_step():
    model, log = net(), Log()
    optimizer = sgd(model)
    with log.watch:
        optimizer.step()  # nothing went backward before
        loss_of(model)
        torch.autograd.grad(loss_of(model), list(model.parameters()))
        optimizer.step()
        loss_of(model).backward()  # nothing is updated after
    assert log.lines == ["began"]


def test_a_closure_is_inside_its_step():
    model, log = net(), Log()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model).square()
        loss.backward()
        return loss

    with log.watch:
        for _ in range(2):
            closure()
            optimizer.step(closure)
    assert log.lines == ["began", "ended 1"] * 2


def test_what_backward_recomputes_is_no_forward():
    model, log = net(), Log()
    optimizer = sgd(model)
    fused = [p.register_post_accumulate_grad_hook(lambda _: optimizer.step()) for p in model.parameters()]
    with log.watch:
        for _ in range(2):
            checkpoint(model, torch.ones(2, 3), use_reentrant=False).sum().backward()
    for handle in fused:
        handle.remove()
    assert log.lines == ["began", "ended 1"] * 2


def test_an_end_that_raises_leaves_the_program_where_it_was():
    class Stop(BaseException):
        pass

    def stop(_):
        raise Stop

    model = net()
    optimizer = sgd(model)
    watch = StepWatch(began=lambda: None, ended=stop)
    rounds = []
    with pytest.raises(Stop), watch:
        for _ in range(5):
            rounds.append(loss_of(model).backward())
            optimizer.step()
    assert len(rounds) == 1
    assert not watch._running


def test_torch_is_as_it_was():
    before = torch.autograd.backward, torch.optim.Optimizer.zero_grad, nn.Module.zero_grad, torch.amp.GradScaler.step
    with Log().watch:
        assert torch.autograd.backward is not before[0]
    after = torch.autograd.backward, torch.optim.Optimizer.zero_grad, nn.Module.zero_grad, torch.amp.GradScaler.step
    assert after == before
