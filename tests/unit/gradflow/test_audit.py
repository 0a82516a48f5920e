import copy
import gc
import random
import sys
import weakref
from collections.abc import Mapping
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import grad_mode
from torch.nn import functional as F
from torch.nn.utils import clip_grad
from torch.optim.optimizer import Optimizer
from torch.utils.checkpoint import checkpoint

from flow_parts import here
from frostline.errors import ConfigError, StepError
from frostline.gradflow import Audit, assert_gradients_flow, audit, auditing
from frostline.tracing import build_fake, fake_tensors

CLASSES = [
    (Optimizer, "__init__ zero_grad"),
    (torch.optim.SGD, "__init__ step zero_grad"),
    (nn.Module, "__setattr__ train zero_grad"),
    (torch.amp.GradScaler, "scale unscale_ step update"),
    (grad_mode.no_grad, "__init__ __enter__ __exit__ __call__"),
    (grad_mode.inference_mode, "__init__ __enter__ __exit__ __call__"),
    (grad_mode.set_grad_enabled, "__init__ __enter__ __exit__"),
    (torch.autograd.anomaly_mode.detect_anomaly, "__init__ __enter__"),
    (torch.autograd.anomaly_mode.set_detect_anomaly, "__init__ __enter__"),
    (torch.autograd, "_engine_run_backward backward grad"),
    (torch.autograd.graph, "_engine_run_backward"),
    (clip_grad, "_group_tensors_by_device_and_dtype clip_grad_norm_"),
    (torch, "set_default_dtype set_default_device set_default_tensor_type no_grad set_grad_enabled"),
    (torch.cuda, "empty_cache"),
    (gc, "collect"),
]


def machinery():
    """Everything an audit could change in torch itself, by identity."""
    optimizers, modules = sys.modules[Optimizer.__module__], torch.nn.modules.module
    found = {f"{owner.__name__}.{name}": getattr(owner, name) for owner, names in CLASSES for name in names.split()}
    found |= {f"own {owner.__name__}.{name}": name in vars(owner) for owner, names in CLASSES for name in names.split()}
    found |= {name: list(value) for name, value in vars(optimizers).items() if name.startswith("_global_optimizer")}
    found |= {
        name: list(value)
        for name, value in vars(modules).items()
        if name.startswith("_global") and "hook" in name and isinstance(value, Mapping)
    }
    return found | {
        "multithreading": torch._C._is_multithreading_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "stance": torch._dynamo.eval_frame._stance.stance,
        "grad mode": torch.is_grad_enabled(),
        "modes": torch.overrides._get_current_function_mode_stack(),
        "dtype": torch.get_default_dtype(),
        "checkpoint": torch.utils.checkpoint._enable_checkpoint_early_stop,
    }


def numbers():
    """The states of all random generators."""
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


def values(model, *optimizers):
    """A deep copy of everything a step may move, with the identity of the tensors."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return (
        {name: (id(t), t.detach().clone().tolist(), t.requires_grad) for name, t in tensors.items()},
        {name: None if p.grad is None else (id(p.grad), p.grad.tolist()) for name, p in model.named_parameters()},
        [module.training for module in model.modules()],
        [repr(optimizer.state_dict()) for optimizer in optimizers],
    )


def marks(*things):
    """What is left on tensors, their storages and their graphs."""
    left, nodes = [], []
    for thing in things:
        storages = [] if thing.layout is not torch.strided else [thing.untyped_storage()]
        left += [name for part in (thing, *storages) for name in vars(part) if "frostline" in name]
        nodes.append(thing.grad_fn)
    seen = set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += list(node.metadata)
            nodes += [child for child, _ in node.next_functions]
    return left


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3))
        self.head = nn.Linear(8, 2)
        self.frozen = nn.Linear(4, 8).requires_grad_(False)

    def forward(self, x):
        return self.head(checkpoint(self.body[0], x, use_reentrant=False).relu() + self.body(x) + self.frozen(x))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def optimizer(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)


class Step:
    """A training step that keeps what it made."""

    def __init__(self, model, optimizer, fails_at=""):
        self.model, self.optimizer, self.fails_at, self.kept = model, optimizer, fails_at, []

    def __call__(self):
        self.fail("start")
        x, y = torch.randn(6, 4), torch.randint(2, (6,))
        np.random.rand(), random.random()
        out = self.model(x)
        loss = F.cross_entropy(out, y)
        self.kept += [x, out, loss, out[1:], out.detach(), loss.detach()]
        self.fail("forward")
        self.optimizer.zero_grad()
        handle = out.register_hook(lambda gradient: self.fail("backward"))
        loss.backward(retain_graph=True)
        handle.remove()
        self.fail("gradients")
        clip_grad.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.model.head.train()
        self.fail("end")

    def fail(self, where):
        if where == self.fails_at:
            raise ZeroDivisionError(where)


MOMENTS = ["", "start", "forward", "backward", "gradients", "end"]


# --- it leaves nothing behind


@pytest.mark.parametrize("fails_at", MOMENTS)
@pytest.mark.parametrize("is_warm", [False, True])
def test_an_audit_leaves_nothing_behind(model, optimizer, fails_at, is_warm):
    if is_warm:  # gradients and the optimizer's state are there before
        Step(model, optimizer)()
    model.body[2].eval()
    before = machinery(), numbers(), values(model, optimizer)
    step = Step(model, optimizer, fails_at)
    if fails_at:
        with pytest.raises(StepError, match="ZeroDivisionError"):
            audit(step, model, optimizer, steps=2)
    else:
        assert audit(step, model, optimizer, steps=2).num_steps == 2
    after = machinery(), numbers(), values(model, optimizer)
    assert after == before
    assert marks(*step.kept, *model.parameters(), *model.buffers()) == []


@pytest.mark.parametrize("fails_at", MOMENTS)
def test_a_watched_block_trains_as_ever_and_leaves_only_that(model, fails_at):
    def run(watched):
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        net = copy.deepcopy(model)
        step = Step(net, torch.optim.AdamW(net.parameters(), lr=1e-2))
        try:
            with auditing(net, step.optimizer) if watched else nullcontext():
                step()
                step.fails_at = fails_at
                step()
        except ZeroDivisionError:
            assert fails_at
        return step

    before = machinery()
    plain, plain_numbers = run(False), numbers()
    watched, watched_numbers = run(True), numbers()
    assert plain_numbers == watched_numbers
    for one, other in zip(plain.model.state_dict().values(), watched.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.equal(one.grad, other.grad)
    assert repr(plain.optimizer.state_dict()) == repr(watched.optimizer.state_dict())
    assert machinery() == before
    assert marks(*watched.kept, *watched.model.parameters(), *watched.model.buffers()) == []


def test_a_graph_that_survives_can_still_go_backward(model, optimizer):
    step = Step(model, optimizer)
    with auditing(model, optimizer):
        step()
    gc.collect()
    calls = []
    step.kept[1].register_hook(calls.append)
    step.kept[2].grad_fn(torch.ones(()))
    assert calls == []
    assert marks(*step.kept) == []


def test_nothing_is_kept_alive(model, optimizer):
    step = Step(model, optimizer)
    with auditing(model, optimizer) as running:
        step()
        references = [weakref.ref(tensor) for tensor in step.kept[1:3]]
        step.kept.clear()
        gc.collect()
        assert [reference() for reference in references] == [None, None]
    assert running.report().faults == ()


def test_what_optimizers_hold_is_put_back_without_a_model_too():
    model = nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters())

    def step():
        optimizer.zero_grad()
        model(torch.randn(6, 4)).square().mean().backward()
        optimizer.step()

    before = numbers(), values(model, optimizer)
    assert audit(step, optimizers=optimizer, steps=2).num_steps == 2
    assert (numbers(), values(model, optimizer)) == before


def test_two_audits_in_a_row_say_the_same(model, optimizer):
    first, second = (audit(Step(model, optimizer), model, optimizer) for _ in range(2))
    assert first.findings == second.findings and first.roles == second.roles


# --- what it says


def cut(model, optimizer):
    def step():
        optimizer.zero_grad()
        hidden = model.body(torch.randn(6, 4)).detach()
        model.head(hidden).square().mean().backward()
        optimizer.step()

    return step, here() - 4


def test_a_cut_is_reported_with_its_line_and_parameters(model, optimizer):
    step, line = cut(model, optimizer)
    report = audit(step, model, optimizer)
    (finding,) = report.faults
    assert (finding.code, finding.slug, finding.level) == ("FL104", "grad-cut/detach", "fault")
    assert set(finding.parameters) == {"body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"}
    assert (finding.places[0].path, finding.places[0].line) == (__file__, line)
    assert finding.what and finding.evidence and finding.so and finding.do
    assert f"test_audit.py:{line}" in str(finding)


def test_a_report_has_phases_roles_and_what_was_not_looked_at(model, optimizer):
    report = audit(Step(model, optimizer), model, optimizer, steps=2)
    assert report.num_steps == 2 and report.method == "real" and report.wall_seconds > 0
    (phase,) = report.phases
    assert phase.name.startswith("AdamW after test_audit.py:")
    assert (phase.num_steps, phase.num_backwards, phase.num_skipped) == (2, 2, 0)
    assert phase.num_parameters == phase.num_reached == 6
    assert {row.module: row.role for row in report.roles} == {
        "body": "trainable",
        "head": "trainable",
        "frozen": "upstream",
    }
    assert report.not_examined == ()
    once = audit(Step(model, optimizer), model, optimizer)
    assert any("second step" in text for text in once.not_examined)


def test_intent_is_judged(model, optimizer):
    report = audit(Step(model, optimizer), model, optimizer, learn=("frozen.*",), stay=("head.*",))
    assert {finding.code for finding in report.faults} >= {"FL214", "FL215"}


def test_accepting_by_code_leaves_the_finding_and_clears_the_fault(model, optimizer):
    step, _ = cut(model, optimizer)
    report = audit(step, model, optimizer, accept=("FL104",))
    assert report.faults == ()
    assert [finding.accepted for finding in report.findings if finding.code == "FL104"] == ["accepted by --accept"]


def test_terms_are_named_by_variables_or_by_the_user(model, optimizer):
    def step(running=None):
        optimizer.zero_grad()
        out = model(torch.randn(6, 4))
        fit, size = out.square().mean(), out.abs().mean().detach() * out.mean().detach()
        if running is not None:
            running.terms(reconstruction=fit, weight=size)
        (fit + size).backward()
        optimizer.step()

    assert {row.term for row in audit(step, model, optimizer).terms} >= {"fit"}
    with auditing(model, optimizer) as running:
        step(running)
    assert "reconstruction" in {row.term for row in running.report().terms}


def test_a_declared_flow(model, optimizer):
    def step():
        optimizer.zero_grad()
        hidden = model.body(torch.randn(6, 4))
        fit, power = model.head(hidden).square().mean(), hidden.square().mean()
        (fit + power).backward()
        optimizer.step()

    right = audit(step, model, optimizer, flow={"fit": ["body.*", "head.*"], "power": "body.*"})
    assert right.faults == ()
    (finding,) = audit(step, model, optimizer, flow={"fit": ["head.*"], "power": "body.*"}).faults
    assert finding.code == "FL112" and "'fit'" in finding.what
    missing = audit(step, model, optimizer, flow={"kl": "body.*"})
    assert any("'kl'" in text for text in missing.not_examined)


def test_several_models_by_name():
    actor, critic = nn.Linear(3, 2), nn.Linear(3, 1)
    optimizer = torch.optim.SGD([*actor.parameters(), *critic.parameters()], lr=0.1)

    def step():
        optimizer.zero_grad()
        (actor(torch.ones(4, 3)) * critic(torch.ones(4, 3)).detach()).mean().backward()
        optimizer.step()

    (finding,) = audit(step, {"actor": actor, "critic": critic}, [optimizer]).faults
    assert set(finding.parameters) == {"critic.weight", "critic.bias"}


def test_a_block_finds_models_and_optimizers_by_itself():
    with auditing() as running:
        network = nn.Linear(3, 2)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            network(torch.ones(4, 3)).detach().requires_grad_().sum().backward()
            optimizer.step()
    (finding,) = running.report().faults
    assert finding.code == "FL107" and set(finding.parameters) == {"network.weight", "network.bias"}


def test_later_registration(model):
    with auditing(stay=("net.head.*",)) as running:
        running.watch(model, "net")
        prompt = torch.zeros(4, requires_grad=True)
        running.watch_tensor(prompt, "prompt")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        running.watch_optimizer(optimizer)
        model(torch.randn(6, 4) + prompt).square().mean().backward()
        optimizer.step()
    found = {finding.code: finding.parameters for finding in running.report().faults}
    assert found["FL215"] == ("net.head.bias", "net.head.weight")


def test_an_error_that_the_audit_understands_is_a_finding(model, optimizer):
    def step():
        with torch.no_grad():
            out = model(torch.randn(6, 4))
        out.mean().backward()

    report = audit(step, model, optimizer)
    assert {finding.code for finding in report.faults} == {"FL101"}


def test_an_error_that_it_does_not_is_raised(model, optimizer):
    with pytest.raises(StepError, match="the step raised ValueError: no data") as caught:
        audit(lambda: (_ for _ in ()).throw(ValueError("no data")), model, optimizer)
    assert isinstance(caught.value.__cause__, ValueError)


def test_bad_arguments(model, optimizer):
    with pytest.raises(StepError, match="0 steps"):
        audit(lambda: None, model, optimizer, steps=0)
    with pytest.raises(ConfigError, match="FL999"):
        audit(lambda: None, model, optimizer, accept=("FL999",))
    with pytest.raises(ConfigError, match="FL999"):
        Audit(accepted=("FL999",))


def test_a_step_that_never_updates(model):
    report = audit(lambda: model(torch.randn(6, 4)).mean().backward(), model)
    assert report.num_steps == 0 and report.faults == ()
    assert any("no optimizer stepped" in text for text in report.not_examined)


def test_the_assertion_for_tests(model, optimizer):
    assert assert_gradients_flow(Step(model, optimizer), model, optimizer).faults == ()
    step, line = cut(model, optimizer)
    with pytest.raises(AssertionError, match=rf"FL104 .*body(.|\n)*test_audit.py:{line}"):
        assert_gradients_flow(step, model, optimizer)
    assert_gradients_flow(step, model, optimizer, accept=("FL104",))


# --- on all kinds of steps


def test_fake_tensors():
    with fake_tensors() as mode:
        net = build_fake(lambda: nn.Sequential(nn.Linear(10**5, 10**5), nn.Dropout(), nn.Linear(10**5, 2)), mode)
        optimizer = torch.optim.AdamW(net.parameters())
        is_cut = False

        def step():
            optimizer.zero_grad()
            hidden = net[:2](torch.randn(2, 10**5))
            net[2](hidden.detach() if is_cut else hidden).square().mean().backward()
            optimizer.step()

        whole = audit(step, net, optimizer, steps=2)
        is_cut = True
        report = audit(step, net, optimizer)
    assert (whole.method, whole.faults, whole.num_steps) == ("fake", (), 2)
    assert any(text.startswith("values:") for text in whole.not_examined)
    (finding,) = report.faults
    assert finding.code == "FL104" and set(finding.parameters) == {"0.weight", "0.bias"}


def healthy_lbfgs():
    net, x = nn.Linear(3, 1), torch.randn(8, 3)
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=3)

    def closure():
        optimizer.zero_grad()
        loss = (net(x).exp() - 1).square().mean()
        loss.backward()
        return loss

    return lambda: optimizer.step(closure), net, optimizer


def healthy_accumulation():
    net = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def step():
        for _ in range(4):
            (net(torch.randn(4, 3)).square().mean() / 4).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, net, optimizer


def healthy_gan():
    net = nn.ModuleDict({"generator": nn.Linear(2, 3), "critic": nn.Linear(3, 1)})
    optimizers = [torch.optim.Adam(part.parameters(), lr=1e-3) for part in net.values()]

    def step():
        fake = net["generator"](torch.randn(8, 2))
        optimizers[1].zero_grad()
        (F.softplus(net["critic"](fake.detach())) + F.softplus(-net["critic"](torch.randn(8, 3)))).mean().backward()
        optimizers[1].step()
        optimizers[0].zero_grad()
        F.softplus(-net["critic"](fake)).mean().backward()
        optimizers[0].step()

    return step, net, optimizers


def healthy_scaler():
    net = nn.Linear(3, 1)
    optimizer, scaler = torch.optim.SGD(net.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=8.0)

    def step():
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = net(torch.randn(4, 3)).square().mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        clip_grad.clip_grad_norm_(net.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()

    return step, net, optimizer


def healthy_module(net, use=lambda net: net(torch.randn(4, 3, 8))):
    def make():
        torch.manual_seed(0)
        module = net()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)

        def step():
            optimizer.zero_grad()
            use(module).square().mean().backward()
            optimizer.step()

        return step, module, optimizer

    return make


def tied():
    net = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 9, bias=False))
    net[1].weight = net[0].weight
    return net


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, dtype=torch.complex64))

    def forward(self, x):
        return (torch.fft.fft(x) * self.weight).abs()


def tokens(net):
    return net(torch.arange(6).view(2, 3))


def attend(net):
    x = torch.randn(4, 3, 8)
    return net(x, x, x)[0]


def functional(net):
    return torch.func.functional_call(net, dict(net.named_parameters()), (torch.randn(4, 3, 8),))


def jacobians(net):
    parameters = dict(net.named_parameters())
    rows = torch.func.vmap(torch.func.grad(lambda x: torch.func.functional_call(net, parameters, (x,)).square().sum()))
    return rows(torch.randn(4, 8))


HEALTHY = {
    "lbfgs": healthy_lbfgs,
    "accumulation": healthy_accumulation,
    "gan": healthy_gan,
    "scaler": healthy_scaler,
    "attention": healthy_module(lambda: nn.MultiheadAttention(8, 2, batch_first=True), attend),
    "encoder": healthy_module(lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)),
    "lstm": healthy_module(lambda: nn.LSTM(8, 8, batch_first=True), lambda net: net(torch.randn(4, 3, 8))[0]),
    "weight norm": healthy_module(lambda: torch.nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))),
    "spectral norm": healthy_module(lambda: torch.nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))),
    "tied": healthy_module(tied, tokens),
    "sparse": healthy_module(lambda: nn.Embedding(6, 8, sparse=True), tokens),
    "complex": healthy_module(Complex),
    "functional call": healthy_module(lambda: nn.Linear(8, 8), functional),
    "jacobians": healthy_module(lambda: nn.Linear(8, 8, bias=False), jacobians),
    "compiled": healthy_module(lambda: torch.compile(nn.Linear(8, 8), backend="eager")),
}


@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.filterwarnings("ignore:Using `torch.compile")
def test_healthy_steps_of_all_kinds_have_no_fault_and_are_put_back(name):
    step, model, optimizers = HEALTHY[name]()
    every = [optimizers] if isinstance(optimizers, Optimizer) else optimizers
    before = machinery(), numbers(), values(model, *every)
    report = audit(step, model, optimizers, steps=3)
    assert [str(finding) for finding in report.findings if finding.level != "note"] == []
    assert report.num_steps >= 3
    assert all(phase.num_reached == phase.num_parameters for phase in report.phases)
    assert (machinery(), numbers(), values(model, *every)) == before
