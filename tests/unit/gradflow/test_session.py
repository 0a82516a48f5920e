from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flow_parts import here
from frostline.gradflow import Intent
from frostline.gradflow.rule import Rule
from frostline.gradflow.session import Session


@pytest.fixture
def session():
    made = Session(Intent())
    made.rules = [Keeper(made)]
    return made


def net(*sizes):
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes)))


class Keeper(Rule):
    """Keeps whole steps, of which a session keeps a tally."""

    def __init__(self, session):
        super().__init__(session)
        self.phases = {}

    def observe(self, step):
        if step.updates:
            optimizers = tuple(dict.fromkeys(id(update.use.optimizer) for update in step.updates))
            lines = tuple(dict.fromkeys(backward.line for backward in step.backwards))
            self.phases.setdefault((optimizers, lines), []).append(step)


def kept(session):
    (keeper,) = session.rules
    assert {key: phase.num_steps for key, phase in session.phases.items()} == {
        key: len(steps) for key, steps in keeper.phases.items()
    }
    return keeper.phases


def names(session, bits):
    return {session.names.leaf(session.leaf(number)) for number in session.leaves.members(bits)}


def test_steps_end_at_the_first_thing_after_their_updates(session):
    model = net(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with session.running():
        for _ in range(3):
            model(torch.ones(4, 3)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert session.num_steps == 3
    ((steps),) = kept(session).values()
    assert [(step.index, len(step.backwards), len(step.updates)) for step in steps] == [(0, 1, 1), (1, 1, 1), (2, 1, 1)]
    assert names(session, steps[0].arrived) == names(session, steps[0].influence) == {"model.0.weight", "model.0.bias"}
    assert session.error is None and session.wall_seconds > 0


def test_micro_batches_belong_to_one_step(session):
    model = net(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with session.running():
        for number in range(8):
            (model(torch.ones(4, 3)).sum() / 4).backward()
            if number % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()
    (steps,) = kept(session).values()
    assert [len(step.backwards) for step in steps] == [4, 4]


def test_a_gans_two_halves_are_two_phases(session):
    generator, critic = net(2, 3), net(3, 1)
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (generator, critic)]
    with session.running():
        for _ in range(2):
            fake = generator(torch.ones(4, 2))
            optimizers[1].zero_grad()
            (critic(fake.detach()).mean() - critic(torch.ones(4, 3)).mean()).backward()
            optimizers[1].step()
            optimizers[0].zero_grad()
            (-critic(fake).mean()).backward()
            optimizers[0].step()
    assert len(kept(session)) == 2
    first, second = kept(session).values()
    assert [len(first), len(second)] == [2, 2]
    assert names(session, first[0].arrived) == {"critic.0.weight", "critic.0.bias"}
    assert names(session, second[0].arrived) == {
        f"{part}.0.{p}" for part in ("critic", "generator") for p in ("weight", "bias")
    }


def test_two_optimizers_after_one_loss_are_one_phase(session):
    model = net(3, 3, 2)
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in model]
    with session.running():
        for _ in range(2):
            model(torch.ones(4, 3)).sum().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    assert session.num_steps >= 2
    assert {len(step.backwards) for steps in kept(session).values() for step in steps} <= {0, 1}


def test_a_closure_that_goes_backward_often_is_one_step(session):
    model = net(3, 2)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(4, 3)).square().mean()
        loss.backward()
        return loss

    with session.running():
        for _ in range(2):
            optimizer.step(closure)
    (steps,) = kept(session).values()
    assert len(steps) == 2
    assert len(steps[0].backwards) > 1


def test_parameters_updated_by_hand_are_stepped_by_the_line_that_writes(session):
    model = net(3, 2)
    with session.running():
        for _ in range(2):
            model(torch.ones(4, 3)).sum().backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    line = here() + 1
                    parameter.sub_(0.1 * parameter.grad)
                    parameter.grad = None
    (steps,) = kept(session).values()
    assert len(steps) == 2
    assert {update.line.number for step in steps for update in step.updates} == {line}


def test_what_an_update_has_read_is_consumed(session):
    model = net(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with session.running():
        session.watch(model)
        loss = model(torch.ones(4, 3)).sum()
        loss.backward()
        backward = session.step.backwards[0]
        number = session.leaves.number(model[0].weight)
        assert session.contributions[number] == [backward]
        assert float(session.loss_values[backward]) == float(loss.detach())
        optimizer.step()
        assert session.consumed[number, id(optimizer)] == {backward}
        optimizer.zero_grad()
        assert number not in session.contributions
        assert not session.step.clearings[-1].discarded


def test_gradients_cleared_unread_are_discarded(session):
    model = net(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with session.running():
        session.watch(model)
        model(torch.ones(4, 3)).sum().backward()
        line = here() + 1
        optimizer.zero_grad(set_to_none=False)
        (clearing,) = session.step.clearings
        assert (clearing.line.number, clearing.to_none) == (line, False)
        assert names(session, clearing.discarded) == {"0.weight", "0.bias"}


def test_a_gradient_set_to_none_by_hand_is_no_contribution_any_more(session):
    model = net(3, 2)
    with session.running():
        session.watch(model)
        model(torch.ones(4, 3)).sum().backward()
        model[0].weight.grad = None
        model[0].bias.grad.zero_()
        model(torch.ones(4, 3)).sum().backward()
        assert [len(known) for known in session.contributions.values()] == [1, 1]


def test_what_should_learn_is_what_optimizers_hold_and_what_is_declared():
    session = Session(Intent.of("1.*"))
    model = net(3, 3, 2)
    model[0].bias.requires_grad_(False)
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    with session.running():
        session.watch(model)
        model(torch.ones(4, 3)).sum().backward()
        optimizer.step()
        assert names(session, session.intended(session.step)) == {"0.weight", "1.weight", "1.bias"}
        assert names(session, session.frozen()) == {"0.bias"}
        assert {session.names.leaf(session.leaf(n)) for n in session.held()} == {"0.weight", "0.bias"}


def test_models_and_optimizers_that_were_not_given_are_found_and_named(session):
    with session.running():
        encoder = net(3, 2)
        optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
        F.mse_loss(encoder(torch.ones(4, 3)), torch.zeros(4, 2)).backward()
        optimizer.step()
    assert names(session, kept(session)[next(iter(kept(session)))][0].arrived) == {
        "encoder.0.weight",
        "encoder.0.bias",
    }


def test_enough_is_asked_after_every_step():
    class EnoughError(Exception):
        pass

    def enough(session):
        seen.append(session.num_steps)
        if session.num_steps == 2:
            raise EnoughError

    seen = []
    session = Session(Intent(), enough=enough)
    model = net(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(EnoughError), session.running():
        for _ in range(10):
            model(torch.ones(4, 3)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert seen == [1, 2]


def test_an_exception_is_kept_and_passed_on(session):
    model = net(3, 2)
    with pytest.raises(RuntimeError, match="mat1 and mat2"), session.running():
        model(torch.ones(4, 5))
    assert isinstance(session.error, RuntimeError)


def test_the_audits_own_operators_are_not_seen(session):
    model = net(3, 2)
    with session.running():
        session.watch(model)
        with session.unseen():
            hidden = model[0].weight * 2
        assert session.flow.num_events == 0
        assert session.flow.source(hidden).event is None
        assert not session.flow.paused
