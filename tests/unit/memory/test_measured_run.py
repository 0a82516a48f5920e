import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from frostline.memory import MeasuredRun, measure


class Stop(BaseException):
    pass


def stop():
    raise Stop


def run(program, num_steps=2):
    measured = MeasuredRun(num_steps, stop)
    try:
        with measured:
            program()
    except (Stop, RuntimeError):
        pass
    return measured.report(), measured


def num_bytes(tensors):
    return sum(tensor.nbytes for tensor in tensors)


def mlp():
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))


def loop(num_steps=5, make=mlp):
    def program():
        torch.manual_seed(0)
        x, model = torch.randn(128, 64), make()
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(num_steps):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

    return program


def test_a_found_step_is_a_told_one():
    """What is discovered gets the report that `measure` makes of the same step, told everything."""
    found, _ = run(loop())
    torch.manual_seed(0)
    x, model = torch.randn(128, 64), mlp()
    optimizer = torch.optim.AdamW(model.parameters())

    def step():
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    told = measure(step, model, optimizers=[optimizer], inputs=x)
    assert found.by_category == told.by_category
    assert (found.peak_bytes, found.resident_bytes, found.num_ops) == (
        told.peak_bytes,
        told.resident_bytes,
        told.num_ops,
    )
    assert found.peak_at == told.peak_at
    assert found.saved_by == told.saved_by
    names = {f"model.{name}" if name in "012" else name: size for name, size in told.by_module.items()}
    assert found.by_module == names
    assert found.covers == "training step 2"


def test_the_peak_of_a_whole_run_is_that_of_the_allocator():
    program = loop(num_steps=3)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        program()
    live = peak = 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    assert run(program, num_steps=9)[0].peak_bytes == pytest.approx(peak, rel=0.01)


def test_lines_add_up_to_the_peak():
    report, _ = run(loop())
    assert sum(report.by_line.values()) == report.peak_bytes
    assert all(line.startswith("test_measured_run.py:") for line in report.by_line)
    assert list(report.by_line.values()) == sorted(report.by_line.values(), reverse=True)


def test_a_gan_has_two_phases_and_each_has_its_warm_up():
    def program():
        generator, critic = mlp(), mlp()
        optimizers = torch.optim.Adam(generator.parameters()), torch.optim.Adam(critic.parameters())
        for _ in range(9):
            for _ in range(3):
                optimizers[1].zero_grad()
                critic(generator(torch.randn(2048, 64)).detach()).mean().backward()
                optimizers[1].step()
            optimizers[0].zero_grad()
            critic(generator(torch.randn(2048, 64))).mean().backward()
            optimizers[0].step()

    report, measured = run(program)
    weights = num_bytes(mlp().parameters())
    assert measured.num_steps == 8, "the generator's second step is the eighth"
    assert report.covers == "training steps 5 to 8"
    assert report.by_category["parameters"] == 2 * weights
    assert report.by_category["optimizer state"] == 2 * (2 * weights + 4 * 4)
    assert any(name.startswith("generator.") for name in report.by_module)
    assert any(name.startswith("critic.") for name in report.by_module)


def test_an_optimizer_that_never_steps_is_not_waited_for_for_ever():
    def program():
        model, idle = mlp(), torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(100):
            model(torch.randn(4, 64)).sum().backward()
            optimizer.step()
        del idle

    _, measured = run(program)
    assert measured.num_steps == 10


def test_a_token_vector_without_a_module_is_found_with_its_gradient_and_state():
    def program():
        token = torch.zeros(1000, requires_grad=True)
        kept = torch.ones(1000)
        optimizer = torch.optim.Adam([token])
        for _ in range(4):
            optimizer.zero_grad()
            (token * kept).sum().backward()
            optimizer.step()

    report, _ = run(program)
    wanted = {"parameters": 4000, "gradients": 4000, "optimizer state": 2 * 4000 + 4}
    assert {name: report.by_category[name] for name in wanted} == wanted


def test_a_copy_nobody_calls_and_buffers_that_are_replaced_are_recognised():
    class Tracker(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 64)
            self.register_buffer("mean", torch.zeros(64, 64))

        def forward(self, x):
            self.mean = self.mean * 0.9
            return self.layer(x)

    def program():
        import copy

        model = Tracker()
        average = copy.deepcopy(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(4):
            model(torch.randn(4, 64)).sum().backward()
            optimizer.step()
        del average

    report, _ = run(program)
    assert report.by_category["parameters"] == 2 * num_bytes(nn.Linear(64, 64).parameters())
    assert report.by_category["buffers"] == 2 * 64 * 64 * 4


def test_a_step_alone_says_that_it_makes_the_state():
    for num_steps, program in ((1, loop()), (2, loop(num_steps=1))):
        report, measured = run(program, num_steps)
        assert measured.num_steps == 1
        assert report.covers == "training step 1, with the making of optimizer state"
        assert report.by_category["optimizer state"] > 0
        assert report.resident_bytes == num_bytes(mlp().parameters()) + 128 * 64 * 4


def test_a_run_without_training_is_measured_as_a_whole():
    def program():
        with torch.no_grad():
            mlp()(torch.randn(512, 64))

    report, _ = run(program)
    assert report.covers == "the whole run: no training step ended"
    assert report.resident_bytes == 0
    assert report.peak_bytes >= num_bytes(mlp().parameters()) + 512 * (64 + 256) * 4
    assert report.by_category["saved for backward"] == 0


@pytest.mark.parametrize(
    ("fails_at", "covers"),
    [
        (0, "the whole run: no training step ended"),
        (1, "what failed after step 1"),
        (2, "training step 2 and what failed after step 2"),
    ],
)
def test_what_fails_counts(fails_at, covers):
    def program():
        model = mlp()
        optimizer = torch.optim.AdamW(model.parameters())
        for i in range(5):
            optimizer.zero_grad()
            if i == fails_at:
                hog = torch.zeros(10**6)
                raise RuntimeError(f"no room after {hog.nbytes} bytes")
            model(torch.randn(8, 64)).sum().backward()
            optimizer.step()

    report, _ = run(program, num_steps=4)
    assert report.covers == covers
    assert report.peak_bytes > 4 * 10**6


def test_a_stop_that_is_caught_comes_again():
    caught = []

    def program():
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(6):
            try:
                model(torch.randn(8, 64)).sum().backward()
                optimizer.step()
            except BaseException as error:
                caught.append(error)

    report, measured = run(program)
    assert len(caught) == 2, "at the third forward, and after the step it let pass"
    assert (measured.num_steps, report.covers) == (2, "training step 2")


def test_a_run_is_blind_for_what_was_there_before():
    stranger = torch.optim.SGD(mlp().parameters(), lr=0.1)
    report, measured = run(loop())
    assert report.by_category["parameters"] == num_bytes(mlp().parameters())
    assert measured.num_steps == 2, "it does not wait for the stranger"
    assert not stranger.state


def test_what_is_compiled_runs_and_is_said_to_be_uncompiled():
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    def program():
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss_of = torch.compile(lambda x: model(x).square().mean(), backend=backend)
        for _ in range(3):
            loss_of(torch.randn(2048, 64)).backward()
            optimizer.step()

    before = torch.compile
    report, _ = run(program)
    assert torch.compile is before
    assert any("compiled functions run uncompiled" in what for what in report.not_seen)
    assert not compiled
    assert "model.1" in report.by_module, "its modules and operators are seen one by one"
    assert not any("compile" in what for what in run(loop())[0].not_seen)


def test_who_saves_for_backward():
    def program():
        front, back = nn.Linear(64, 64), nn.Sequential(nn.Linear(64, 64), nn.GELU()).requires_grad_(False)
        optimizer = torch.optim.SGD(front.parameters(), lr=0.1)
        x = torch.randn(4096, 64)
        for _ in range(3):
            optimizer.zero_grad()
            back(front(x)).exp().sum().backward()
            optimizer.step()

    report, _ = run(program)
    assert report.saved_by["frozen parts"] == 4096 * 64 * 4, "GELU's input; a frozen linear layer keeps nothing"
    assert sum(report.saved_by.values()) == report.by_category["saved for backward"]
    assert report.saved_by["trainable parts"] == 4096 * 64 * 4, "exp keeps its output, outside all modules"
