import gc

import pytest
import torch
from torch.autograd import grad_mode
from torch.utils.checkpoint import checkpoint

from flow_parts import flowing, here


@pytest.fixture
def w():
    return torch.nn.Parameter(torch.ones(3))


def told(flow, tensor):
    """Kind, line and whether its function runs, of who switched gradients off for a tensor."""
    event = flow.event(tensor)
    assert not event.grad_enabled
    assert event.context.line is None or event.context.line.path == __file__
    return event.context.kind, event.context.line and event.context.line.number, event.live


@pytest.mark.parametrize(
    ("switch", "kind"),
    [
        (torch.no_grad, "no_grad"),
        (torch.inference_mode, "inference_mode"),
    ],
)
def test_a_with_block(w, switch, kind):
    with flowing(w=w) as flow:
        line = here() + 1
        with switch():
            out = w * 2
            assert told(flow, out) == (kind, line, True)
        assert flow.trace.switches.context is None
        assert flow.event(w * 2).context is None


def test_set_grad_enabled_in_a_with_block_is_a_block(w):
    with flowing(w=w) as flow:
        line = here() + 1
        with torch.set_grad_enabled(False):
            assert told(flow, w * 2) == ("no_grad", line, True)
        with torch.set_grad_enabled(True):
            assert flow.event(w * 2).context is None


@pytest.mark.parametrize(("switch", "kind"), [(torch.no_grad(), "no_grad"), (torch.inference_mode(), "inference_mode")])
def test_a_decorator_is_named_by_the_function_it_stands_on(w, switch, kind):
    line = here() + 2

    @switch
    def frozen(x):
        return x * 2

    with flowing(w=w) as flow:
        found, number, live = told(flow, frozen(w))
        assert (found, live) == (kind, True)
        assert abs(number - line) <= 1


def test_a_statement_that_is_never_undone(w):
    def validate():
        torch.set_grad_enabled(False)

    line = here() - 2
    with flowing(w=w) as flow:
        validate()
        try:
            assert told(flow, w * 2) == ("set_grad_enabled", line, False)
        finally:
            torch.set_grad_enabled(True)
        assert flow.trace.switches.context is None


def test_a_suspended_generator(w):
    @torch.no_grad()
    def decorated():
        yield w * 1
        yield w * 2

    def plain():
        with torch.no_grad():
            yield w * 1

    line = here() - 3
    with flowing(w=w) as flow:
        generator = decorated()
        told(flow, next(generator))
        assert flow.event(w * 3).context is None  # torch switches gradients back on between two values
        generator = plain()
        next(generator)
        kind, number, live = told(flow, w * 3)
        assert (kind, number, live) == ("no_grad", line, False)
        generator.close()
        assert flow.event(w * 3).context is None


def test_nested_switches_and_enable_grad(w):
    with flowing(w=w) as flow:
        outer = here() + 1
        with torch.no_grad():
            with torch.no_grad():
                assert told(flow, w * 2)[0] == "no_grad"
            assert told(flow, w * 2) == ("no_grad", outer, True)
            with torch.enable_grad():
                assert flow.event(w * 2).context is None
            again = told(flow, w * 2)
        assert again[0] == "no_grad"
        assert again[1] in (outer, outer + 4)


def test_gradients_that_were_off_before(w):
    with torch.no_grad(), flowing(w=w) as flow:
        assert told(flow, w * 2) == ("unknown", None, True)


def test_an_exception_in_a_block_switches_back(w):
    with flowing(w=w) as flow:
        with pytest.raises(ZeroDivisionError), torch.no_grad():
            1 / 0  # noqa: B018
        assert flow.event(w * 2).context is None


def test_inference_mode_lines_are_kept(w):
    with flowing(w=w) as flow:
        line = here() + 1
        with torch.inference_mode():
            assert not (w * 2).requires_grad
        with torch.inference_mode(False):
            assert (w * 2).requires_grad
        assert [found.number for found in flow.trace.switches.inference] == [line]


def test_a_switch_that_is_called_and_dropped_is_told(w):
    with flowing(w=w) as flow:
        line = here() + 1
        torch.no_grad()
        torch.inference_mode()
        with torch.no_grad():
            pass
        kept = torch.no_grad()
        with kept:
            pass
        torch.no_grad()(torch.tanh)(w)
        kept = None
        gc.collect()
        assert {found.number for found in flow.trace.switches.bare} == {line, line + 1}


def test_a_decorator_at_a_definition_is_not_dropped(w):
    with flowing(w=w) as flow:

        @torch.no_grad()
        def function(x):
            return x

        function(w)
        gc.collect()
        assert flow.trace.switches.bare == set()


def test_the_backward_of_a_function_and_a_functions_forward_have_no_switch(w):
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            ctx.inner = x * 1
            return x * x

        @staticmethod
        def backward(ctx, gradient):
            return 2 * ctx.saved_tensors[0] * gradient

    with flowing(w=w) as flow:
        out = Square.apply(w)
        assert flow.event(out).context is None
        assert flow.reach(out) == {"w"}


def test_an_optimizer_and_a_checkpoint_switch_nothing_for_good(w):
    with flowing(w=w) as flow:
        optimizer = torch.optim.SGD([w], lr=0.1)
        checkpoint(torch.tanh, w * 1, use_reentrant=True).sum().backward()
        optimizer.step()
        assert flow.trace.switches.context is None
        assert torch.is_grad_enabled()


def test_everything_is_put_back():
    kinds = (grad_mode.no_grad, grad_mode.inference_mode)
    names = ("__init__", "__enter__", "__exit__", "__call__")
    before = [(kind, name, vars(kind).get(name), getattr(kind, name)) for kind in kinds for name in names]
    with flowing():
        assert grad_mode.no_grad.__enter__ is not before[1][3]
    for kind, name, own, found in before:
        assert vars(kind).get(name) is own
        assert getattr(kind, name) is found
