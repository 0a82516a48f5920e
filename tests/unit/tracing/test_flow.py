import gc
import sysconfig
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from flow_parts import flowing, here
from frostline.tracing import build_fake, fake_tensors


@pytest.fixture
def w():
    return nn.Parameter(torch.arange(1.0, 5.0))


@pytest.fixture
def v():
    return nn.Parameter(torch.arange(2.0, 6.0))


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


class Swallow(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return None


# --- influence and reach


@pytest.mark.parametrize(
    "use",
    [
        lambda w: w * 2,
        lambda w: w[1:],
        lambda w: w.view(2, 2).t(),
        lambda w: (w * 2).view(2, 2)[0],
        lambda w: torch.stack([w, torch.zeros(4)]),
        lambda w: torch.cat((w, w)),
        lambda w: w.chunk(2)[1],
        lambda w: torch.einsum("i,i->", w, w),
        lambda w: F.linear(torch.ones(1, 4), w[None]),
        lambda w: w.to(torch.float64),
        lambda w: w.max(dim=0).values,
        lambda w: torch.where(w > 2, w, 0.0),
        lambda w: 3 - w,
        lambda w: w.unbind()[0],
        lambda w: w.expand(2, 4).contiguous(),
        lambda w: torch.zeros(4).add_(w),
        lambda w: torch.zeros(4).index_put((torch.tensor([0]),), w[:1]),
        lambda w: torch.complex(w, w).abs(),
        Double.apply,
        lambda w: Double.apply(w * 3),
        Swallow.apply,
        lambda w: checkpoint(lambda x: x.exp(), w, use_reentrant=False),
        lambda w: checkpoint(lambda x: x.exp(), w, use_reentrant=True),
        lambda w: torch.utils.checkpoint.checkpoint_sequential([nn.Tanh(), nn.Tanh()], 2, w, use_reentrant=False),
        torch.func.vmap(lambda x: x * 2),
        lambda w: torch.sparse_coo_tensor(torch.tensor([[0, 2]]), w[:2], (4,), check_invariants=False).to_dense(),
    ],
)
def test_what_autograd_follows_is_reached(w, use):
    with flowing(w=w) as flow:
        out = use(w)
        assert flow.influence(out) == flow.reach(out) == {"w"}


def write_by_index(w):
    out = torch.zeros(4)
    with torch.no_grad():
        out[1] = w[0]
    return out


def write_through_a_view(w):
    out = torch.zeros(4)
    out[1:].view(-1).data.add_(w[1:])
    return out


def write_to_out(w):
    out = torch.empty(4)
    with torch.no_grad():
        torch.mul(w, 2, out=out)
    return out


@torch.no_grad()
def without_gradients(w):
    return w * 2


@torch.inference_mode()
def in_inference(w):
    return (w * 2).clone()


def through_foreach(w):
    out = [torch.zeros(4)]
    torch._foreach_add_(out, [w.detach()])
    return out[0]


@pytest.mark.parametrize(
    "use",
    [
        lambda w: w.detach(),
        lambda w: w.data,
        lambda w: (w * 2).data + 1,
        lambda w: (w * 2).detach().view(2, 2),
        lambda w: (w * 2).detach()[1:].clone(),
        lambda w: torch.tensor(w.detach()),
        lambda w: torch.as_tensor(w.detach() * 2),
        lambda w: w.detach().clone().requires_grad_(True) * 2,
        lambda w: w.argmax(),
        lambda w: (w > 2).float(),
        lambda w: (w * 2).long(),
        without_gradients,
        in_inference,
        write_by_index,
        write_through_a_view,
        write_to_out,
        through_foreach,
    ],
)
@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
def test_influence_outlives_a_cut(w, use):
    with flowing(w=w) as flow:
        out = use(w)
        assert flow.influence(out) - flow.reach(out) == {"w"}


def test_what_has_not_to_do_with_it_is_not_influenced(w):
    with flowing(w=w) as flow:
        for out in (torch.ones(4) * 2, torch.zeros_like(w), torch.randn(4), w.new_ones(4), torch.empty_like(w) * 0):
            assert flow.influence(out) == set()


def test_two_parameters_are_told_apart(w, v):
    with flowing(w=w, v=v) as flow:
        both = w * v.detach()
        assert flow.influence(both) == {"w", "v"}
        assert flow.reach(both) == {"w"}
        assert flow.influence(w.detach() + 0) == {"w"}


def test_a_write_to_a_view_influences_the_whole_and_a_write_of_constants_does_not_forget(w):
    with flowing(w=w) as flow:
        whole = torch.zeros(2, 4)
        whole[0] = w
        assert flow.reach(whole) == {"w"}
        assert flow.reach(whole[1] + 0) == {"w"}  # by storage, not by element
        with torch.no_grad():
            whole[1].zero_()
        assert flow.influence(whole) == {"w"}


def test_a_frozen_parameter_influences_nothing_and_is_still_known(w):
    frozen = nn.Parameter(torch.ones(4), requires_grad=False)
    with flowing(w=w) as flow:
        assert flow.influence(frozen * 2) == set()
        assert flow.reach(frozen * w) == {"w"}


def test_a_leaf_nobody_told_of_is_numbered_where_it_is_first_met():
    with flowing() as flow:
        loose = torch.ones(3, requires_grad=True)
        line = here() + 1
        out = loose * 2
        assert flow.reach(out) == {"leaf 0"}
        assert flow.leaves.all[0].tensor is loose
        assert flow.leaves.all[0].line.number in (line, line - 2)
        assert flow.leaves.all[0].made_in == 0


def test_a_graph_from_before_the_trace_leads_to_its_leaves(w):
    before = w * 3
    with flowing() as flow:
        assert flow.reach(before * 2) == {"leaf 0"}
        assert flow.leaves.all[0].tensor is w
        assert flow.leaves.all[0].hidden


# --- events


def test_an_event_names_line_operator_module_and_sources(w):
    class Head(nn.Module):
        def forward(self, x):
            return x.tanh()

    head = Head()
    with flowing(w=w) as flow:
        line = here() + 1
        scaled = w * 2
        out = head(scaled)
        first, second = flow.event(scaled), flow.event(out)
    assert (first.op, first.line.number, first.module) == ("Tensor.mul", line, None)
    assert first.line.path == __file__ and first.near is None
    assert first.sources[0].leaf == 0 and first.factor == 2.0
    assert second.op == "Tensor.tanh" and second.module is head
    assert second.sources[0].event is first
    assert second.index == first.index + 1


def test_inside_torch_the_user_is_blamed_and_inside_a_library_both_lines_are_kept(w):
    path = f"{sysconfig.get_path('purelib')}/somebody/layers.py"
    library = {}
    exec(compile("def forward(x):\n    return x.detach()\n", path, "exec"), library)
    linear = nn.Linear(4, 2)
    with flowing(w=w) as flow:
        inner = flow.event(linear(w)).line
        line = here() + 1
        event = flow.event(library["forward"](w * 2))
    assert (inner.path, inner.number) == (__file__, line - 2)
    assert (event.line.path, event.line.number) == (__file__, line)
    assert (event.near.path, event.near.number) == (path, 2)


@pytest.mark.parametrize(
    ("use", "kind"),
    [
        (lambda w: (w * 2).detach(), "detach"),
        (lambda w: (w * 2).data, "data"),
        (lambda w: torch.tensor((w * 2).detach()), "rewrap"),
        (lambda w: (w * 2).detach().requires_grad_(), "reattach"),
        (lambda w: torch.autograd.grad(w.square().sum(), w, create_graph=True)[0], "gradient"),
        (lambda w: w * 2, "op"),
    ],
)
@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
def test_events_have_kinds(w, use, kind):
    with flowing(w=w) as flow:
        assert flow.event(use(w)).kind == kind


def test_an_event_knows_who_switched_gradients_off(w):
    with flowing(w=w) as flow:
        line = here() + 1
        with torch.no_grad():
            out = w * 2
        event = flow.event(out)
        assert not event.grad_enabled
        assert (event.context.kind, event.context.line.number, event.live) == ("no_grad", line, True)
        assert flow.event(w * 2).context is None


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_reentrant_checkpoint_is_who_switched_them_off(w):
    with flowing(w=w) as flow:
        line = here() + 1
        out = checkpoint(torch.tanh, w.detach() * 1, use_reentrant=True)
        context = flow.event(out).context
    assert (context.kind, context.line.path, context.line.number) == ("checkpoint", __file__, line)


def test_a_forward_hook_that_detaches_is_the_place_of_the_cut(w):
    linear = nn.Linear(4, 2)
    line = here() + 3

    def hook(module, inputs, out):
        return out.detach()

    linear.register_forward_hook(hook)
    with flowing(w=w) as flow:
        out = linear(w)
        assert flow.influence(out) >= {"w"} and flow.reach(out) == set()
        assert flow.event(out).line.number == line


def test_values_that_leave_torch_are_noted(w):
    with flowing(w=w) as flow:
        scaled = w * 2
        line = here() + 1
        scaled.sum().item()
        scaled.detach().numpy()
        float(scaled.detach()[0])
        scaled.tolist()
        np.asarray(scaled.detach())
        bool(scaled[0] > 0)
        torch.ones(3).tolist()
    escapes = {
        op: (escape.line.number - line, flow.set(escape.influence)) for (op, _), escape in flow.notes.escapes.items()
    }
    assert escapes == {
        ".item()": (0, {"w"}),
        ".numpy()": (1, {"w"}),
        "float()": (2, {"w"}),
        ".tolist()": (3, {"w"}),
        "numpy.asarray()": (4, {"w"}),
    }


def test_random_numbers_are_noted_in_modules_and_out(w):
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    with flowing(w=w) as flow:
        model(w[None])
        model.eval()(w[None])
        torch.randn(2)
        torch.randn(2, generator=torch.Generator())
        ops = [(draw.op.rpartition(".")[2], type(draw.module).__name__) for draw in flow.notes.draws]
        assert ops == [("dropout", "Dropout"), ("randn", "NoneType"), ("randn", "NoneType")]
        assert flow.set(flow.notes.draws[0].influence) >= {"w"}


def test_writes_freezing_and_reads_of_gradients_are_noted(w, v):
    with flowing(w=w, v=v) as flow:
        line = here() + 1
        w.data.mul_(0.5)
        with torch.no_grad():
            v.copy_(torch.ones(4))
        v.requires_grad_(False)
        w.sum().backward()
        assert w.grad is not None
        w.grad = None
    assert flow.notes.writes[id(w)].number == line
    assert flow.notes.writes[id(v)].number == line + 2
    assert (flow.notes.frozen_at[id(v)][0].number, flow.notes.frozen_at[id(v)][1]) == (line + 3, False)
    assert flow.notes.num_reads[0] == 2


# --- modules and backward


def test_only_outermost_forwards_are_told(w):
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    with flowing(w=w) as flow:
        model(w)
        model[0](w)
    assert flow.recorder.forwards == [model, model[0]]
    assert {id(module) for module in (model, *model)} == set(flow.trace.modules.by_id)
    assert flow.trace.modules.by_id[id(model[0])].num_calls == 2
    assert flow.trace.modules.current is None


def test_a_backward_pass_is_described(w, v):
    with flowing(w=w, v=v) as flow:
        loss = (w * v.detach()).sum()
        line = here() + 1
        loss.backward(retain_graph=True)
        backward = flow.backward
        assert (backward.line.number, backward.accumulates, backward.retains, backward.creates) == (
            line,
            True,
            True,
            False,
        )
        assert flow.set(backward.influence) == {"w", "v"}
        assert flow.set(backward.reach) == flow.set(backward.arrived) == {"w"}
        assert backward.targets is None and backward.error is None
        assert flow.recorder.ended == [backward]
        (norm,) = backward.norms[flow.event(loss)]
        assert float(norm) == 1.0

        torch.autograd.grad(loss, [w], create_graph=True)
        backward = flow.backward
        assert (backward.accumulates, backward.creates) == (False, True)
        assert flow.set(backward.targets) == flow.set(backward.arrived) == {"w"}


def test_a_backward_that_raises_says_so(w):
    with flowing(w=w) as flow:
        loss = w.exp().sum()
        loss.backward()
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()
    assert [type(backward.error) for backward in flow.recorder.backwards] == [type(None), RuntimeError]
    assert len(flow.recorder.ended) == 2


def test_magnitudes_show_where_a_gradient_vanishes(w):
    with flowing(w=w) as flow:
        inner = w * 2
        zero = inner * 0.0
        broken = (inner - inner.detach()).sqrt()
        (zero.sum() + broken.sum()).backward()
        norms = {name: float(flow.backward.norms[flow.event(t)][0]) for name, t in (("zero", zero), ("inner", inner))}
    assert norms["zero"] == 1.0
    assert not norms["inner"] < float("inf")


def test_a_function_that_swallows_the_gradient_is_reached_and_nothing_arrives(w):
    with flowing(w=w) as flow:
        Swallow.apply(w * 2).sum().backward()
        assert flow.set(flow.backward.reach) == {"w"}
        assert flow.set(flow.backward.arrived) == set()


def test_gradients_of_gradients_depend_on_what_the_loss_does(w, v):
    with flowing(w=w, v=v) as flow:
        (gradient,) = torch.autograd.grad((w.square() * v).sum(), w, create_graph=True)
        assert flow.influence(gradient) == flow.reach(gradient) == {"w", "v"}
        gradient.sum().backward()
        assert flow.set(flow.backward.arrived) == {"w", "v"}


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_recomputation_is_not_seen_twice_and_gradients_are_the_same(use_reentrant):
    def run(flow=None):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Tanh(), nn.Linear(4, 2))
        x = torch.randn(3, 4, requires_grad=True)
        loss = checkpoint(model, x, use_reentrant=use_reentrant).square().sum()
        before = flow.trace.num_events if flow else 0
        loss.backward()
        return model, (flow.trace.num_events - before if flow else 0)

    plain, _ = run()
    with flowing() as flow:
        watched, num_events = run(flow)
        assert num_events == 0
        assert [draw.recomputing for draw in flow.notes.draws if "dropout" in draw.op] == [False, True]
    for one, other in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_hooks_of_the_program_run_as_before(w):
    seen = []
    with flowing(w=w):
        out = w * 2
        out.register_hook(lambda g: seen.append("tensor") or g * 3)
        w.register_post_accumulate_grad_hook(lambda p: seen.append("accumulated"))
        out.grad_fn.register_prehook(lambda gs: seen.append("node"))
        out.sum().backward()
    assert seen == ["node", "tensor", "accumulated"] or seen == ["tensor", "node", "accumulated"]
    assert torch.equal(w.grad, torch.full((4,), 6.0))


# --- what it must live with


def attention():
    return nn.MultiheadAttention(8, 2, batch_first=True)


def self_attention(module, x):
    return module(x, x, x)[0]


def call(module, x):
    return module(x)


def in_autocast(module, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return module(x)


def by_functional_call(module, x):
    return torch.func.functional_call(module, dict(module.named_parameters()), (x,))


def by_jacobian(module, x):
    return torch.func.vmap(torch.func.grad(lambda row: module(row[None]).sum()))(x.flatten(0, 1))


def bag(module, x):
    return module(torch.arange(6).view(2, 3))


def tied():
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    model[1].weight = model[0].weight
    return model


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, dtype=torch.complex64))

    def forward(self, x):
        return (torch.fft.fft(x) * self.weight).abs()


ZOO = {
    "attention": (attention, self_attention),
    "encoder": (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 2), call),
    "lstm": (lambda: nn.LSTM(8, 8, 2, batch_first=True), lambda m, x: m(x)[0]),
    "gru": (lambda: nn.GRU(8, 8, batch_first=True), lambda m, x: m(x)[0]),
    "weight norm": (lambda: torch.nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), call),
    "spectral norm": (lambda: torch.nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)), call),
    "autocast": (lambda: nn.Linear(8, 8), in_autocast),
    "functional call": (lambda: nn.Linear(8, 8), by_functional_call),
    "per-sample gradients": (lambda: nn.Sequential(nn.Linear(8, 8), nn.Tanh()), by_jacobian),
    "sparse embedding": (lambda: nn.Embedding(6, 8, sparse=True), bag),
    "embedding bag": (lambda: nn.EmbeddingBag(6, 8, sparse=True), bag),
    "tied": (tied, call),
    "complex": (Complex, call),
    "conv and norm": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), call),
}


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_modules_of_all_kinds_give_the_same_gradients_and_are_reached_whole(name):
    make, use = ZOO[name]

    def run():
        torch.manual_seed(0)
        module = make()
        use(module, torch.randn(2, 3, 8)).square().sum().backward()
        return dict(module.named_parameters())

    plain = run()
    with flowing() as flow:
        watched = run()
        arrived = {id(flow.leaves.all[n].tensor) for n in flow.leaves.members(flow.backward.arrived)}
    for key, parameter in watched.items():
        expected = plain[key].grad
        assert (expected is None) == (parameter.grad is None)
        assert (id(parameter) in arrived) == (expected is not None)
        if expected is not None:
            one, other = (g.to_dense() if g.is_sparse else g for g in (expected, parameter.grad))
            assert torch.equal(one, other)


def test_an_encoder_that_runs_without_gradients_computes_the_same():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        plain = encoder(x)
        with flowing() as flow:
            watched = encoder(x)
    torch.testing.assert_close(plain, watched)  # a function mode switches its fused path off: another rounding
    assert flow.recorder.forwards == [encoder]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_pass(w):
    with flowing(w=w) as flow:
        nested = torch.nested.as_nested_tensor([w * 2, w[:2]], layout=torch.jagged)
        out = nested.to_padded_tensor(0.0)
        assert flow.influence(out) == {"w"}
        out.sum().backward()
    assert torch.equal(w.grad, torch.tensor([3.0, 3.0, 2.0, 2.0]))


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
def test_a_compiled_module_runs_eager_and_is_seen(w):
    model = nn.Linear(4, 2)
    compiled = torch.compile(model, backend="eager")
    with flowing(w=w) as flow:
        out = compiled(w)
        assert "w" in flow.reach(out)
        assert "linear" in flow.event(out).op
        out.sum().backward()
    assert model.weight.grad is not None


def test_fake_tensors_flow_too():
    with fake_tensors() as mode:
        model = build_fake(lambda: nn.Sequential(nn.Linear(10**5, 10**5), nn.Tanh()), mode)
        with flowing(weight=model[0].weight) as flow:
            out = model(torch.randn(2, 10**5))
            cut = out.detach() * 2
            assert flow.reach(out) >= {"weight"} and flow.influence(cut) >= {"weight"}
            assert flow.reach(cut) == set()
            out.sum().backward()
            assert flow.set(flow.backward.arrived) >= {"weight"}


def test_a_paused_trace_sees_nothing(w):
    with flowing(w=w) as flow:
        flow.trace.paused = True
        out = w.detach() * 2
        flow.trace.paused = False
        assert flow.trace.num_events == 0
        assert flow.event(out) is None


# --- what it leaves


def test_no_mark_hook_or_graph_is_left(w):
    storage = None
    with flowing(w=w):
        out = w * 2
        view, cut, buffer = out[1:], out.detach(), torch.zeros(4)
        buffer.copy_(cut)
        loss = out.sum()
        loss.backward(retain_graph=True)
        storage = out.untyped_storage()
        again = cut.requires_grad_()
    for thing in (out, view, cut, buffer, loss, again, w, storage, w.untyped_storage(), buffer.untyped_storage()):
        assert not [name for name in vars(thing) if "frostline" in name]
    nodes = [loss.grad_fn, out.grad_fn, view.grad_fn]
    assert [node.metadata for node in nodes] == [{}, {}, {}]
    loss.backward()  # no hook of ours is in the way
    assert torch.equal(w.grad, torch.full((4,), 4.0))


def test_the_trace_keeps_no_activation_alive(w):
    with flowing(w=w):
        out = w * 2
        gone = weakref.ref(out)
        storage = weakref.ref(out.untyped_storage())
        del out
        gc.collect()
        assert gone() is None and storage() is None


def test_an_exception_inside_leaves_nothing_either(w):
    engine, stance = torch.autograd._engine_run_backward, torch._dynamo.eval_frame._stance.stance
    multithreading = torch._C._is_multithreading_enabled()
    with pytest.raises(ZeroDivisionError), flowing(w=w):
        out = w * 2
        1 / 0  # noqa: B018
    assert vars(out) == {}
    assert torch.autograd._engine_run_backward is engine
    assert torch._C._is_multithreading_enabled() == multithreading
    assert torch._dynamo.eval_frame._stance.stance == stance
