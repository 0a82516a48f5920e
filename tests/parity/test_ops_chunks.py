from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from frostline.errors import ConfigError, ShapeError, StepError
from frostline.ops import chunked_map


def net(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 4, 3)).to(dtype)


def step(function, x, model):
    model.zero_grad()
    x = x.clone().requires_grad_()
    output = function(x)
    output.square().sum().backward()
    return [output.detach(), x.grad, *(p.grad for p in model.parameters() if p.requires_grad)]


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("chunk_size", [0, 1, 2, 3, 7, 99])
def test_value_and_gradients_equal_the_plain_call(chunk_size, frozen):
    model, x = net().requires_grad_(not frozen), torch.randn(7, 3, 6, 6, dtype=torch.float64)
    plain = step(model, x, model)
    chunked = step(lambda x: chunked_map(model, x, chunk_size=chunk_size), x, model)
    torch.testing.assert_close(chunked, plain, rtol=1e-12, atol=1e-12)


def test_rounding_in_float32_is_that_of_the_plain_call():
    x = torch.randn(7, 3, 6, 6)
    exact_model, model = net(), net(torch.float32)
    exact = step(exact_model, x.double(), exact_model)
    plain = step(model, x, model)
    chunked = step(lambda x: chunked_map(model, x, chunk_size=2), x, model)
    for mine, theirs, truth in zip(chunked, plain, exact, strict=True):
        noise = max((theirs - truth).abs().max().item(), 1e-7 * truth.abs().max().item())
        assert (mine - truth).abs().max() <= 4 * noise


@pytest.mark.parametrize("dim", [1, -2])
def test_several_inputs_along_any_dimension(dim):
    left, right = torch.randn(3, 5, 2), torch.randn(3, 5, 4)
    joined = chunked_map(lambda a, b: torch.cat([a, b], 2), (left, right), chunk_size=2, dim=dim)
    assert torch.equal(joined, torch.cat([left, right], 2))


def test_without_a_gradient_chunks_are_written_into_one_output():
    outputs = []

    def function(x):
        outputs.append(x + 1)
        return outputs[-1]

    x = torch.randn(6, 4)
    output = chunked_map(function, x, chunk_size=4)
    assert torch.equal(output, x + 1)
    assert not output.requires_grad
    assert output.untyped_storage().nbytes() == x.nbytes
    assert [len(part) for part in outputs] == [4, 2]


def test_a_trainable_function_gets_its_gradient_from_inputs_that_need_none():
    layer, x = nn.Linear(4, 2), torch.randn(6, 4)
    chunked_map(layer, x, chunk_size=4).sum().backward()
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(2, 4))
    with torch.no_grad():
        assert not chunked_map(layer, x, chunk_size=4).requires_grad


def test_with_a_gradient_only_the_inputs_are_kept():
    model, x = net().requires_grad_(False), torch.randn(6, 3, 6, 6, dtype=torch.float64).requires_grad_()
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        chunked_map(model, x, chunk_size=2)
    assert set(storages) == {x.untyped_storage().data_ptr()}


def test_dropout_draws_the_same_masks_in_the_recomputation():
    x = torch.ones(6, 50, requires_grad=True)
    output = chunked_map(lambda x: torch.dropout(x, 0.5, True) * x, x, chunk_size=2)
    output.sum().backward()
    assert torch.equal(x.grad, 2 * output.detach())


def test_gradients_accumulate_under_autocast():
    layer, reference, x = nn.Linear(4, 2), nn.Linear(4, 2), torch.randn(6, 4)
    reference.load_state_dict(layer.state_dict())
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            chunked, plain = chunked_map(layer, x, chunk_size=3), reference(x)
        assert chunked.dtype == plain.dtype == torch.bfloat16
        chunked.float().sum().backward()
        plain.float().sum().backward()
    torch.testing.assert_close(layer.weight.grad, reference.weight.grad, rtol=2e-2, atol=2e-2)


def test_runs_on_fake_tensors():
    with FakeTensorMode():
        layer, x = nn.Linear(6, 2), torch.randn(5, 6, requires_grad=True)
        chunked_map(layer, x, chunk_size=2).sum().backward()
        assert x.grad.shape == x.shape


def test_mistakes_are_named():
    x = torch.randn(6, 4)
    with pytest.raises(ConfigError, match="chunk_size is -1"):
        chunked_map(torch.relu, x, chunk_size=-1)
    with pytest.raises(ShapeError, match=r"each input .* \(\.\.\., 6 along dim 0, \.\.\.\), got \(5, 4\)"):
        chunked_map(torch.add, (x, x[1:]), chunk_size=2)
    with pytest.raises(ShapeError, match=r"output of .*function .* 2 along dim 0.*got \(\)"):
        chunked_map(torch.mean, x, chunk_size=2)
    with pytest.raises(StepError, match="returned list, not a tensor"):
        chunked_map(lambda x: [x, x], x, chunk_size=2)
    with pytest.raises(StepError, match="returned a tuple with NoneType, not a tensor"):
        chunked_map(lambda x: (x, None), x, chunk_size=2)
    with pytest.raises(ConfigError, match="no input to take rows of"):
        chunked_map(torch.ones, (), chunk_size=2)
