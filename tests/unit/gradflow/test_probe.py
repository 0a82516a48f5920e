"""Finite differences: what proves a cut, what refutes it, and that nothing is left behind."""

import copy
import itertools
import random
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frostline.errors import StepError
from frostline.gradflow import Audit, audit
from frostline.gradflow.check import check_gradients
from frostline.gradflow.probe import Difference, Question, probe_step
from frostline.gradflow.target import Target
from frostline.tracing import fake_tensors

Step = Callable[[], object]
Way = Callable[[nn.Module, Tensor], Tensor]


def _no_grad(part: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return part(x)


def _detach(part: nn.Module, x: Tensor) -> Tensor:
    return part(x).detach()


def _numpy(part: nn.Module, x: Tensor) -> Tensor:
    return torch.from_numpy(np.tanh(part(x).detach().numpy().astype(np.float32)))


def _item(part: nn.Module, x: Tensor) -> Tensor:
    return x.repeat(1, 2) * part(x).sum().item()


def _partial(part: nn.Module, x: Tensor) -> Tensor:
    return part(x) + part(x).detach()


def _whole(part: nn.Module, x: Tensor) -> Tensor:
    return part(x)


def _straight_through(part: nn.Module, x: Tensor) -> Tensor:
    h = part(x)
    return h + (h.round() - h).detach()


class Net(nn.Module):
    """A part whose output takes some way to a head, and a part that nothing uses."""

    def __init__(self, way: Way, *, between: nn.Module | None = None) -> None:
        super().__init__()
        self.way, self.part, self.between = way, nn.Linear(4, 8), between or nn.Tanh()
        self.head, self.unused = nn.Linear(8, 3), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.way(self.part, x)))


def _training(net: nn.Module) -> tuple[Step, torch.optim.Optimizer]:
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    x, y = torch.randn(6, 4), torch.randint(0, 3, (6,))  # float32, as in the user's program

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()

    return step, optimizer


def _ask(step: Step, net: nn.Module, module: nn.Module, **more: object) -> Difference:
    targets = tuple(Target(name, None, parameter) for name, parameter in module.named_parameters())
    question = Question(targets=targets, backwards=(0,), **more)  # type: ignore[arg-type]
    learners = [parameter for parameter in net.parameters() if parameter.requires_grad]
    return probe_step(step, [question], modules=[net], learners=learners)[0]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("way", [_no_grad, _detach, _numpy, _item])
def test_a_cut_parameter_changes_the_loss_and_autograd_says_nothing(way: Way) -> None:
    net = Net(way)
    step, _ = _training(net)
    difference = _ask(step, net, net.part)
    assert not difference.trouble
    assert abs(difference.numeric) > 1e-6
    assert difference.analytic == 0


@pytest.mark.parametrize("way", [_no_grad, _detach, _item])
def test_the_difference_is_the_gradient_the_cut_has_hidden(way: Way) -> None:
    def uncut(part: nn.Module, x: Tensor) -> Tensor:
        return x.repeat(1, 2) * part(x).sum() if way is _item else part(x)

    cut = Net(way)
    whole = copy.deepcopy(cut)
    whole.way = uncut
    torch.manual_seed(1)
    numeric = _ask(_training(cut)[0], cut, cut.part).numeric
    torch.manual_seed(1)
    healthy = _ask(_training(whole)[0], whole, whole.part)
    assert healthy.analytic == pytest.approx(numeric, rel=1e-6)
    assert healthy.numeric == pytest.approx(numeric, rel=1e-6)


def test_a_partial_cut_gives_half_the_gradient() -> None:
    net = Net(_partial)
    step, _ = _training(net)
    difference = _ask(step, net, net.part)
    assert difference.analytic / difference.numeric == pytest.approx(0.5, rel=1e-6)


def test_an_unused_parameter_changes_nothing() -> None:
    net = Net(_whole)
    difference = _ask(_training(net)[0], net, net.unused)
    assert (difference.numeric, difference.far, difference.trouble) == (0, 0, "")
    assert not difference.has_influence


def test_what_a_zero_hides_is_seen_from_elsewhere() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part, self.gate, self.head = nn.Linear(4, 8), nn.Parameter(torch.zeros(8)), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.gate * _no_grad(self.part, x))

    net = Gated()
    difference = _ask(_training(net)[0], net, net.part)
    assert difference.numeric == 0
    assert difference.far > 1e-6
    assert difference.has_influence


def _conv() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 4, 2, padding=1), nn.BatchNorm2d(4), nn.GELU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(4, 3),
    )  # fmt: skip


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(1, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.unsqueeze(-1))[0][:, -1])


class _Embedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.head = nn.Embedding(10, 6), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = (x.abs() * 3).long().clamp(max=9)
        mask = torch.ones(4, dtype=torch.float32)
        mask[0] = 0.5
        return self.head(self.norm(self.table(tokens) * mask[:, None].float()).mean(1))


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.head = nn.Linear(1, 8), nn.Linear(8, 3)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.up(x.unsqueeze(-1))).mean(1))


class _Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part, self.head, self.scale = nn.Linear(4, 8), nn.Linear(8, 3), torch.rand(8)

    def forward(self, x: Tensor) -> Tensor:
        run = torch.utils.checkpoint.checkpoint
        return self.head(run(lambda x: torch.tanh(self.part(x)) * self.scale, x, use_reentrant=False))


class _Buffered(nn.Module):
    """Writes float64 values into lower-precision tensors, whole and through views."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        room = x.new_zeros(6, 8)
        room[:, :4] += self.part(x)[:, :4]
        room[:, 4:].copy_(self.part(x)[:, 4:].to(x.dtype))
        return self.head(room.type_as(x).half().float())


_MODELS = [_conv, _Recurrent, _Embedding, _Attention, _Checkpointed, _Buffered]


@pytest.mark.parametrize("make", _MODELS)
def test_whole_gradients_agree_to_six_digits(make: Callable[[], nn.Module]) -> None:
    net = make()
    step, optimizer = _training(net)
    for check in check_gradients(step, net, optimizer):
        assert check.relative_error < 1e-6, check
        assert check.analytic == pytest.approx(check.numeric, rel=1e-6, abs=1e-10)


def test_autocast_in_the_step_is_switched_off() -> None:
    net = Net(_whole)
    x, y = torch.randn(6, 4), torch.randint(0, 3, (6,))
    seen = []

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = net(x)
        seen.append(out.dtype)
        F.cross_entropy(out.float(), y).backward()

    checks = check_gradients(step, net)
    assert set(seen) == {torch.float64}
    assert all(check.analytic == pytest.approx(check.numeric, rel=1e-6, abs=1e-10) for check in checks)
    step()
    assert seen[-1] is torch.bfloat16


def test_a_gradient_scaler_does_not_scale() -> None:
    net = Net(_no_grad)
    optimizer, scaler = torch.optim.SGD(net.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
    x, y = torch.randn(6, 4), torch.randint(0, 3, (6,))

    def step() -> None:
        for _ in range(2):
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(net(x), y)).backward()
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()

    checks = {check.parameter: check for check in check_gradients(step, net, optimizer, backward=1)}
    plain = {check.parameter: check for check in check_gradients(lambda: F.cross_entropy(net(x), y).backward(), net)}
    assert checks["head.weight"].analytic == pytest.approx(plain["head.weight"].analytic, rel=1e-9)
    assert checks["part.weight"].numeric == pytest.approx(plain["part.weight"].numeric, rel=1e-9)
    assert checks["part.weight"].analytic == 0
    assert scaler.state_dict()["scale"] == 65536.0
    step()  # as after any other update


def test_a_cast_under_no_grad_still_cuts() -> None:
    def cast(part: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            weight = part.weight.bfloat16()
        return F.linear(x.bfloat16(), weight).float()

    net = Net(cast)
    checks = {check.parameter: check for check in check_gradients(_training(net)[0], net)}
    assert checks["part.weight"].analytic == 0
    assert checks["part.weight"].numeric != 0


def test_a_low_precision_model_is_checked_in_float64() -> None:
    net = Net(_whole).to(torch.bfloat16)
    before = copy.deepcopy(net.state_dict())
    x, y = torch.randn(6, 4, dtype=torch.bfloat16), torch.randint(0, 3, (6,))
    checks = check_gradients(lambda: F.cross_entropy(net(x), y).backward(), net)
    assert all(check.analytic == pytest.approx(check.numeric, rel=1e-6, abs=1e-10) for check in checks)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_half_checked_gradient_shows_in_the_relative_error() -> None:
    net = Net(_partial)
    step, optimizer = _training(net)
    errors = {check.parameter: check.relative_error for check in check_gradients(step, net, optimizer)}
    assert errors["part.weight"] == pytest.approx(0.5, rel=1e-5)
    assert errors["head.weight"] < 1e-6
    assert errors["unused.weight"] == 0


def test_a_later_loss_of_the_step_is_looked_at_without_the_updates_before_it() -> None:
    generator, critic = nn.Linear(4, 4), nn.Linear(4, 1)
    first = torch.optim.SGD(critic.parameters(), lr=0.5)
    second = torch.optim.SGD(generator.parameters(), lr=0.5)
    x = torch.randn(6, 4)

    def step() -> None:
        first.zero_grad()
        critic(generator(x).detach()).square().mean().backward()
        first.step()
        second.zero_grad()
        critic(generator(x)).mean().backward()
        second.step()

    net = nn.ModuleList([generator, critic])
    for check in check_gradients(step, net, (first, second), backward=1)[:2]:
        assert check.analytic == pytest.approx(check.numeric, rel=1e-6)


# --- nothing is left behind


class _Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part, self.norm, self.drop = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3)
        self.head, self.seen, self.cache = nn.Linear(8, 3), [], None

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.part(x)
        self.cache = h
        self.seen.append(h)
        np.random.rand()
        random.random()
        return self.head(self.drop(self.norm(h)))


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_restored_bit_for_bit(fails: bool) -> None:
    net = _Stateful()
    step, optimizer = _training(net)
    step()
    net.cache, net.seen = None, []
    gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
    objects = {name: (id(t), t.data_ptr(), t.clone()) for name, t in net.state_dict(keep_vars=True).items()}
    copies = {name: None if g is None else g.clone() for name, g in gradients.items()}
    states = copy.deepcopy(optimizer.state_dict())
    generators = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()

    def broken() -> None:
        step()
        raise RuntimeError("after the update")

    def broken_before() -> None:
        net(torch.randn(6, 4))
        raise RuntimeError("in forward")

    difference = _ask(broken_before if fails else broken, net, net.part)
    assert ("RuntimeError: in forward" in difference.trouble) is fails

    for name, tensor in net.state_dict(keep_vars=True).items():
        assert (id(tensor), tensor.data_ptr()) == objects[name][:2]
        assert torch.equal(tensor, objects[name][2])
        assert tensor.dtype == objects[name][2].dtype
    for name, parameter in net.named_parameters():
        assert parameter.grad is gradients[name]
        assert parameter.grad is None or torch.equal(parameter.grad, copies[name])
    for new, old in zip(optimizer.state_dict()["state"].values(), states["state"].values(), strict=True):
        assert all(torch.equal(new[key], old[key]) for key in old)
    assert (net.cache, net.seen) == (None, [])
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert np.array_equal(np.random.get_state()[1], generators[1])
    assert random.getstate() == generators[2]
    assert torch.get_default_dtype() is torch.float32
    assert torch.is_grad_enabled()


def test_tensors_of_the_user_are_given_back_as_they_were() -> None:
    net, room, flat = Net(_whole), torch.zeros(6, 4), torch.zeros(24)
    alias = flat.view(6, 4)
    x, y = torch.randn(6, 4), torch.randint(0, 3, (6,))

    def step() -> None:
        room.copy_(net.part(x).detach()[:, :4])
        alias[:, 0].copy_(net.part(x).detach()[:, 0])
        F.cross_entropy(net(x) + room.sum() * torch.tensor([1.0, 2.0, 3.0]) + flat.sum(), y).backward()

    difference = _ask(step, net, net.part)
    assert not difference.trouble
    for tensor in (room, flat, alias):
        assert tensor.dtype is torch.float32
        assert not tensor.any()
    assert alias.data_ptr() == flat.data_ptr()


def test_tied_weights_move_together() -> None:
    net = Net(_whole)
    net.part2 = nn.Linear(4, 8)
    net.part2.weight = net.part.weight
    net.way = lambda part, x: part(x) * net.part2(x)
    step, _ = _training(net)
    difference = _ask(step, net, net.part)
    assert difference.analytic == pytest.approx(difference.numeric, rel=1e-6)


# --- what cannot be decided


def test_a_bias_that_a_norm_removes_is_rounding_and_no_error() -> None:
    net = Net(_whole, between=nn.BatchNorm1d(8))
    step, optimizer = _training(net)
    checks = {check.parameter: check for check in check_gradients(step, net, optimizer)}
    bias = checks["part.bias"]
    assert abs(bias.analytic) < bias.resolution
    assert (bias.numeric, bias.relative_error) == (0, 0)
    assert checks["part.weight"].relative_error < 1e-6


def test_a_step_that_draws_other_data_each_time_says_so() -> None:
    net, data = Net(_no_grad), (torch.full((2, 4), float(n)) for n in itertools.count())

    def step() -> None:
        F.cross_entropy(net(next(data)), torch.tensor([0, 1])).backward()

    assert "do not give the same loss" in _ask(step, net, net.part).trouble
    with pytest.raises(StepError, match=r"'part.weight' cannot be checked: two runs from the same state"):
        check_gradients(step, net)


def test_a_step_that_writes_over_the_parameter_says_so() -> None:
    net = Net(_no_grad)
    step, _ = _training(net)

    def resetting() -> None:
        nn.init.constant_(net.part.weight, 0.1)
        nn.init.constant_(net.part.bias, 0.1)
        step()

    assert "writes over it" in _ask(resetting, net, net.part).trouble


def test_a_step_without_backward_and_a_loss_that_is_not_finite_say_so() -> None:
    net = Net(_no_grad)
    x = torch.randn(6, 4)
    assert "did not come to the same backward" in _ask(lambda: net(x), net, net.part).trouble
    assert _ask(lambda: torch.autograd.backward(net(x).sum() / 0), net, net.part).trouble == "the loss is not finite"
    assert "no variable 'term'" in _ask(lambda: net(x).sum().backward(), net, net.part, term="term").trouble


# --- the audit


@pytest.mark.parametrize(
    ("way", "code"), [(_no_grad, "FL101"), (_detach, "FL104"), (_numpy, "FL106"), (_item, "FL106")]
)
def test_an_audit_proves_its_findings(way: Way, code: str) -> None:
    net = Net(way)
    step, optimizer = _training(net)
    report = audit(step, net, optimizer, probe=True)
    finding = next(finding for finding in report.findings if finding.code == code)
    assert finding.level == "fault"
    assert "finite difference: the loss changes by " in finding.evidence
    assert finding.evidence.endswith(" per unit, autograd says 0")
    unused = next(finding for finding in report.findings if finding.code == "FL207")
    assert unused.evidence.endswith("finite difference: 0, however far it moves")


def test_without_probe_the_evidence_is_as_before() -> None:
    net = Net(_no_grad)
    step, optimizer = _training(net)
    assert not any("finite" in finding.evidence for finding in audit(step, net, optimizer).findings)


def test_a_straight_through_estimator_is_not_probed() -> None:
    net = Net(_straight_through)
    net.unused = nn.Identity()
    step, optimizer = _training(net)
    report = audit(step, net, optimizer, probe=True)
    assert not report.faults
    assert not any("finite difference" in finding.evidence for finding in report.findings)


def test_rounding_is_flat_and_stays_a_fault() -> None:
    net = Net(lambda part, x: (part(x) * 4).round())
    step, optimizer = _training(net)
    finding = audit(step, net, optimizer, probe=True).faults[0]
    assert finding.code == "FL114"
    assert "finite difference: 0 here; elsewhere, moving it by its own size changes the loss by " in finding.evidence


def test_a_cut_without_influence_becomes_a_note() -> None:
    net = Net(lambda part, x: x.repeat(1, 2) + 0.0 * _no_grad(part, x))
    step, optimizer = _training(net)
    assert [finding.code for finding in audit(step, net, optimizer).faults] == ["FL101"]
    report = audit(step, net, optimizer, probe=True)
    assert not report.faults
    finding = next(finding for finding in report.findings if finding.code == "FL101")
    assert finding.level == "note"
    assert finding.so == "no gradient is lost: no loss follows it"
    declared = audit(step, net, optimizer, learn="part.*", probe=True)
    assert [finding.code for finding in declared.faults] == ["FL101"]


def test_logging_a_value_is_not_an_escape() -> None:
    net, log = Net(_whole), []
    step, optimizer = _training(net)

    def logging() -> None:
        log.append(net.unused.weight.norm().item())
        step()

    assert [finding.code for finding in audit(logging, net, optimizer).faults] == ["FL106"]
    assert not audit(logging, net, optimizer, probe=True).faults


def test_a_dead_loss_term_is_proved_by_its_variable() -> None:
    net = Net(_whole)
    net.unused = nn.Identity()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x, y = torch.randn(6, 4), torch.randint(0, 3, (6,))

    def step() -> None:
        optimizer.zero_grad()
        fit = F.cross_entropy(net(x), y)
        with torch.no_grad():
            smooth = net.part(x).square().mean()
        (fit + smooth).backward()
        optimizer.step()

    report = audit(step, net, optimizer, probe=True)
    finding = next(finding for finding in report.faults if finding.code == "FL111")
    assert "finite difference: loss term 'smooth' changes by " in finding.evidence
    assert finding.evidence.endswith("autograd says 0")


def test_what_cannot_be_decided_is_listed() -> None:
    net, data = Net(_no_grad), (torch.full((2, 4), float(n)) for n in itertools.count())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def step() -> None:
        F.cross_entropy(net(next(data)), torch.tensor([0, 1])).backward()
        optimizer.step()

    report = audit(step, net, optimizer, probe=True)
    assert [finding.code for finding in report.faults] == ["FL101"]
    expected = "FL101 of 'part.*' (2 parameters) by finite differences: two runs from the same state do not give"
    assert any(text.startswith(expected) for text in report.not_examined)


# --- scripts


_SCRIPT = """
import numpy as np, torch
from torch import nn
from torch.nn import functional as F
{setup}
print("the script speaks")
body, head, unused = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(2, 2)
model = nn.ModuleDict(dict(body=body, head=head, unused=unused))
scale = torch.ones(8, requires_grad=True)
first = torch.optim.SGD(model.parameters(), lr=0.1)
second = torch.optim.SGD([scale], lr=0.1)
for _ in range(3):
    x, y = torch.from_numpy(np.random.randn(6, 4).astype(np.float32)), torch.randint(0, 3, (6,))
    first.zero_grad(), second.zero_grad()
    h = torch.tensor(body(x).tolist()) * scale.detach()
    F.cross_entropy(head(h), y).backward()
    first.step(), second.step()
"""


class _Stop(BaseException):
    pass


def _audit_script(path: Path, setup: str = "") -> tuple[Audit, Callable[[], object]]:
    path.write_text(_SCRIPT.format(setup=setup))

    def run_once() -> None:
        try:
            runpy.run_path(str(path), run_name="__main__")
        except _Stop:
            pass

    running = Audit()
    with running.running():
        run_once()
    return running, run_once


def test_a_script_is_probed_by_running_it_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    running, run_once = _audit_script(tmp_path / "train.py")
    before = running.report()
    assert capsys.readouterr().out == "the script speaks\n"
    generators = torch.get_rng_state(), random.getstate()
    report = running.probe_script(before, run_once, end=_Stop)
    assert capsys.readouterr().out == ""
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert torch.get_default_dtype() is torch.float32
    evidence = {(finding.code, name): finding.evidence for finding in report.findings for name in finding.parameters}
    assert evidence["FL106", "model.body.weight"].endswith("per unit, autograd says 0")
    scale = next(finding for finding in report.findings if finding.code == "FL104")
    assert "finite difference: the loss changes by " in scale.evidence
    assert report.not_examined == before.not_examined


def test_a_script_with_randomness_of_its_own_says_so(tmp_path: Path) -> None:
    setup = "import os; np.random.seed(int.from_bytes(os.urandom(4)))"
    running, run_once = _audit_script(tmp_path / "train.py", setup)
    before = running.report()
    report = running.probe_script(before, run_once, end=_Stop)
    assert report.faults == before.faults
    assert any("two runs from the same state do not give the same loss" in text for text in report.not_examined)


def test_fake_tensors_have_nothing_to_move() -> None:
    with fake_tensors():
        net = Net(_no_grad)
        step, optimizer = _training(net)
        report = audit(step, net, optimizer, probe=True)
    assert [finding.code for finding in report.faults] == ["FL101"]
    assert "finite difference" not in report.faults[0].evidence
