"""The two exact forms of a map over rows with recompute: `chunked_map` checkpointed, `deferred_map` deferred."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from frostline.errors import ConfigError, ShapeError, StepError
from frostline.memory import measure
from frostline.ops import chunked_map, deferred_map
from frostline.proof import compare_gradients, gradients_of, noise_floor


class Renderer(nn.Module):
    """Rows, a style for all of them and an index without gradient in; two values and a count out."""

    def __init__(self, width=12):
        super().__init__()
        self.first, self.last = nn.Linear(3, width), nn.Linear(width, 4)

    def forward(self, points, index, style):
        hidden = torch.tanh(self.first(points) * style[index])
        values = self.last(hidden)
        return values[..., :3], values[..., 3:].exp(), (values > 0).sum(-1, keepdim=True)


def parts(dtype=torch.float64, num_rows=11):
    torch.manual_seed(0)
    model, source = Renderer().to(dtype), torch.randn(2, 12, dtype=dtype)
    return model, torch.randn(num_rows, 3, dtype=dtype), torch.arange(num_rows) % 2, source


def step(form, dtype=torch.float64, *, train_points=True, **options):
    """Gradients of the model, of the source that the style is made from, and of the points."""
    model, points, index, source = parts(dtype)
    points.requires_grad_(train_points)
    source.requires_grad_()
    style = source.sin() * 2  # no leaf
    if form is None:
        colours, density, count = model(points, index, style)
    else:
        colours, density, count = form(model, (points, index), shared=(style,), **options)
    assert not count.requires_grad and count.dtype == torch.int64
    (colours.square().mean() + density.log().sin().mean()).backward()
    gradients = {**gradients_of(model), "source": source.grad}
    if train_points:
        gradients["points"] = points.grad
    return gradients, (colours.detach(), density.detach(), count)


FORMS = pytest.mark.parametrize("form", [chunked_map, deferred_map])


@pytest.mark.parametrize("train_points", [True, False])
@pytest.mark.parametrize("chunk_size", [0, 1, 4, 5, 11, 99])
@FORMS
def test_fp64_gradients_equal_the_plain_calls(form, chunk_size, train_points):
    plain, outputs = step(None, train_points=train_points)
    treated, treated_outputs = step(form, train_points=train_points, chunk_size=chunk_size)
    torch.testing.assert_close(treated, plain, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(treated_outputs, outputs, rtol=1e-13, atol=1e-13)


@FORMS
def test_fp32_class_is_exact_in_one_chunk_and_rounding_in_several(form):
    plain, reference = step(None, torch.float32)[0], step(None, torch.float64)[0]
    floor = noise_floor(plain, {name: value.double() for name, value in as_float32(reference).items()})
    whole = compare_gradients(plain, step(form, torch.float32, chunk_size=11)[0], floor=floor)
    several = compare_gradients(plain, step(form, torch.float32, chunk_size=3)[0], floor=floor)
    assert whole.proof_class == "EXACT"
    assert several.proof_class in ("ROUNDING", "EXACT")
    assert several.worst.max_relative <= 8 * floor < 1e-4


def as_float32(reference):
    """The fp64 step starts from other random numbers than the fp32 one: run it from the fp32 values."""
    model, points, index, source = parts(torch.float32)
    model, points, source = model.double(), points.double().requires_grad_(), source.double().requires_grad_()
    colours, density, _ = model(points, index, source.sin() * 2)
    (colours.square().mean() + density.log().sin().mean()).backward()
    found = {**gradients_of(model), "source": source.grad, "points": points.grad}
    assert found.keys() == reference.keys()
    return found


def test_both_forms_are_one_function():
    checkpointed, deferred = (step(form, torch.float32, chunk_size=4)[0] for form in (chunked_map, deferred_map))
    assert compare_gradients(checkpointed, deferred).proof_class in ("ROUNDING", "EXACT")
    assert torch.equal(checkpointed["points"], deferred["points"])


@FORMS
def test_any_dimension_of_rows(form):
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 2).double(), torch.randn(3, 10, 4, dtype=torch.float64, requires_grad=True)
    layer(x).square().sum().backward()
    expected = [x.grad.clone(), layer.weight.grad.clone()]
    x.grad = layer.weight.grad = None
    form(layer, x, chunk_size=3, dim=1).square().sum().backward()
    torch.testing.assert_close([x.grad, layer.weight.grad], expected, rtol=1e-12, atol=1e-12)


@FORMS
def test_backward_draws_the_random_numbers_of_forward_and_leaves_the_generator_alone(form):
    x = torch.ones(6, 50, requires_grad=True)
    torch.manual_seed(3)
    output = form(lambda x: torch.dropout(x, 0.5, True) * x, x, chunk_size=2)
    after_forward = torch.get_rng_state()
    torch.rand(7)
    between = torch.get_rng_state()
    output.sum().backward()
    assert torch.equal(x.grad, 2 * output.detach())
    assert torch.equal(torch.get_rng_state(), between)
    torch.manual_seed(3)
    torch.cat([torch.dropout(rows, 0.5, True) for rows in x.detach().split(2)])
    assert torch.equal(torch.get_rng_state(), after_forward)


@FORMS
def test_without_preserved_states_other_numbers_are_drawn(form):
    torch.manual_seed(3)
    x = torch.ones(6, 50, requires_grad=True)
    output = form(lambda x: torch.dropout(x, 0.5, True) * x, x, chunk_size=2, preserve_rng_state=False)
    output.sum().backward()
    assert not torch.equal(x.grad, 2 * output.detach())


@pytest.mark.parametrize("inside", [False, True], ids=["around the call", "in the function"])
@FORMS
def test_autocast_is_the_calls_own_in_backward(form, inside):
    def half():
        return torch.autocast("cpu", dtype=torch.bfloat16)

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside or torch.is_autocast_enabled("cpu")):
                y = self.layer(x)
            assert y.dtype == torch.bfloat16
            return y

    torch.manual_seed(0)
    model, x = Half(), torch.randn(6, 8)
    with torch.autocast("cpu", enabled=False) if inside else half():
        output = form(model, x, chunk_size=6)
    output.float().square().sum().backward()
    found = gradients_of(model)
    model.zero_grad()
    with half():
        model(x).float().square().sum().backward()
    assert compare_gradients(gradients_of(model), found).proof_class == "EXACT"


def test_a_deferred_forward_does_not_spoil_autocasts_copies_of_the_weights():
    torch.manual_seed(0)
    model, x = nn.Linear(8, 8), torch.randn(6, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        deferred_map(model, x, chunk_size=2)
        model(x).float().sum().backward()
    assert model.weight.grad is not None and model.weight.grad.any()


@FORMS
def test_gradients_accumulate_and_a_frozen_function_passes_them_on(form):
    model, points, index, source = parts()
    for _ in range(2):
        form(model, (points, index), shared=(source,), chunk_size=4)[0].sum().backward()
    twice = gradients_of(model)
    model.zero_grad()
    (2 * model(points, index, source)[0].sum()).backward()
    torch.testing.assert_close(twice, gradients_of(model), rtol=1e-12, atol=1e-14)
    model.requires_grad_(False)
    points.requires_grad_()
    form(model, (points, index), shared=(source,), chunk_size=4)[0].sum().backward()
    assert points.grad.any() and all(p.grad is None or not p.requires_grad for p in model.parameters())


@FORMS
def test_what_nothing_reads_gets_no_gradient(form):
    model, points, index, source = parts()
    unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    options = {"parameters": [*model.parameters(), unused]} if form is deferred_map else {}
    density = form(model, (points, index), shared=(source,), chunk_size=4, **options)[1]
    density.sum().backward()
    assert unused.grad is None and points.grad is None
    assert not model.last.weight.grad[:3].any() and model.last.weight.grad[3:].any()


@FORMS
def test_without_grad_mode_or_anything_that_trains_there_is_no_graph(form):
    model, points, index, source = parts()
    with torch.no_grad():
        outputs = form(model, (points, index), shared=(source,), chunk_size=4)
    assert not any(output.requires_grad for output in outputs)
    outputs = form(model.requires_grad_(False), (points, index), shared=(source,), chunk_size=4)
    assert not any(output.requires_grad for output in outputs)
    torch.testing.assert_close(outputs, model(points, index, source), rtol=1e-13, atol=1e-13)


def test_the_checkpointed_form_has_a_second_derivative_and_the_deferred_one_says_it_has_none():
    def penalty(apply):
        model, points, index, source = parts()
        points.requires_grad_()
        (slope,) = torch.autograd.grad(apply(model, points, index, source).sum(), points, create_graph=True)
        slope.square().sum().backward()
        return gradients_of(model)

    plain = penalty(lambda model, points, index, source: model(points, index, source)[1])
    treated = penalty(
        lambda model, points, index, source: chunked_map(model, (points, index), shared=(source,), chunk_size=4)[1]
    )
    torch.testing.assert_close(treated, plain, rtol=1e-12, atol=1e-14)
    with pytest.raises(StepError, match=r"no second derivative(.|\n)*chunked_map"):
        penalty(lambda model, points, index, source: deferred_map(
            model, (points, index), shared=(source,), chunk_size=4)[1])  # fmt: skip


def test_a_forgotten_parameter_is_refused():
    model, points, index, source = parts()

    def function(points, index, style):
        return model(points, index, style)[0]

    with pytest.raises(StepError, match=r"trains a tensor of shape \(4, 12\).*not given(.|\n)*parameters="):
        deferred_map(function, (points, index), shared=(source,), chunk_size=4, parameters=[
            *model.first.parameters(), model.last.bias])  # fmt: skip
    with pytest.raises(StepError, match=r"was not given"):
        deferred_map(function, (points, index), shared=(source,), chunk_size=4)
    style = source.requires_grad_().sin()
    with pytest.raises(StepError, match=r"tensor of shape \(2, 12\)(.|\n)*under shared="):
        deferred_map(
            lambda points, index: model(points, index, style)[0],
            (points, index),
            chunk_size=4,
            parameters=model.parameters(),
        )
    output = deferred_map(function, (points, index), shared=(source,), chunk_size=4, parameters=model.parameters())
    assert output.requires_grad


def test_the_deferred_form_keeps_nothing_but_what_it_was_given():
    model, points, index, source = parts()
    given = {t.untyped_storage().data_ptr() for t in (points, index, source, *model.parameters())}
    packed = []

    def pack(tensor):
        detached = tensor.detach()  # an output that a node saved would hold its own graph
        packed.append(weakref.ref(detached))
        return detached

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = deferred_map(model, (points, index), shared=(source,), chunk_size=2)
    kept = [reference() for reference in packed if reference() is not None]
    assert outputs[0].requires_grad
    assert {tensor.untyped_storage().data_ptr() for tensor in kept} == given


@FORMS
def test_the_peak_does_not_grow_with_the_rows(form):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 1))

    def peak(num_rows, chunk_size):
        x = torch.randn(num_rows, 4)

        def one_step():
            form(model, x, chunk_size=chunk_size, preserve_rng_state=False).sum().backward()

        report = measure(one_step, model, inputs=x)
        return report.peak_bytes - x.nbytes

    small, large, plain = peak(512, 64), peak(2048, 64), peak(2048, 0)
    assert large - small <= 1536 * 4 * 6 and plain > 5 * large


@FORMS
def test_an_argument_changed_before_backward_is_noticed(form):
    model, points, index, source = parts()
    output = form(model, (points, index), shared=(source,), chunk_size=4)[0]
    source.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_inside_a_checkpoint_and_around_one():
    plain = step(None)[0]

    def inner(model, inputs, *, shared):
        return deferred_map(
            lambda *args: checkpoint(model, *args, use_reentrant=False),
            inputs, shared=shared, chunk_size=4, parameters=model.parameters(),
        )  # fmt: skip

    def outer(model, inputs, *, shared):
        return checkpoint(
            lambda *args: deferred_map(model, args[:2], shared=args[2:], chunk_size=4),
            *inputs, *shared, use_reentrant=False,
        )  # fmt: skip

    for form in (inner, outer):
        torch.testing.assert_close(step(form)[0], plain, rtol=1e-12, atol=1e-14)


@FORMS
def test_hooks_of_parameters_run_once_a_backward(form):
    model, points, index, source = parts()
    calls = []
    model.last.bias.register_post_accumulate_grad_hook(lambda parameter: calls.append(parameter.grad.clone()))
    form(model, (points, index), shared=(source,), chunk_size=3)[0].sum().backward()
    assert len(calls) == 1 and torch.equal(calls[0], model.last.bias.grad)


@FORMS
def test_runs_on_fake_tensors(form):
    with FakeTensorMode():
        layer, x = nn.Linear(6, 2), torch.randn(5, 6, requires_grad=True)
        form(layer, x, chunk_size=2).sum().backward()
        assert x.grad.shape == x.shape


@FORMS
def test_mistakes_are_named(form):
    x = torch.randn(6, 4)
    with pytest.raises(ConfigError, match="chunk_size is -1"):
        form(torch.relu, x, chunk_size=-1)
    with pytest.raises(ShapeError, match=rf"each input of {form.__name__} .* 6 along dim 0.*got \(5, 4\)"):
        form(torch.add, (x, x[1:]), chunk_size=2)
    with pytest.raises(ShapeError, match=r"each output of .*function .* 2 along dim 0.*got \(\)"):
        form(torch.mean, x, chunk_size=2)
    with pytest.raises(StepError, match="returned NoneType, not a tensor"):
        form(lambda x: None, x, chunk_size=2)
