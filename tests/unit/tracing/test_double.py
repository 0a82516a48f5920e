"""Float64 for programs written in lower precision: what is raised, what is left alone, what comes back."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from frostline.tracing import in_double


def test_mixed_operators_compute_in_float64_and_casts_down_do_nothing() -> None:
    low, whole = torch.rand(3), torch.arange(3)
    with in_double():
        high = torch.rand(3)
        for made in (
            high * low,
            torch.cat([low, high]),
            torch.where(whole > 0, low, high),
            high.float(),
            high.half(),
            high.to(torch.bfloat16),
            high.to(low),
            high.type_as(low),
            high.type(torch.FloatTensor),
            high.type("torch.HalfTensor"),
            whole.float(),
            low * 0.5,
            torch.zeros(3, dtype=torch.float32),
            torch.full((3,), 1, dtype=torch.bfloat16),
            torch.tensor(np.float32([1.0])),
            torch.from_numpy(np.float32([1.0])),
            torch.tensor([1.0]),
        ):
            assert made.dtype is torch.float64
        assert torch.equal(high * low, high * low.to(torch.float64))
        assert (low + low).dtype is low.dtype is torch.float32
        assert (whole * 2).dtype is torch.int64
        assert whole.to(torch.int32).view(torch.float32).dtype is torch.float32
        assert (torch.view_as_complex(high[:2]) * torch.ones((), dtype=torch.complex64)).dtype is torch.complex128


def test_what_is_written_to_is_raised_in_place_with_all_its_views() -> None:
    room = torch.zeros(2, 3)
    row, flat = room[0], room.view(-1)
    address = room.data_ptr()
    with in_double():
        row.copy_(torch.full((3,), 1 / 3))
        assert room.dtype is row.dtype is torch.float64
        assert room[0, 0].item() == 1 / 3
        assert (flat + torch.zeros(6, dtype=torch.float64))[0].item() == 1 / 3
    assert room.dtype is row.dtype is flat.dtype is torch.float32
    assert not room.any()
    assert room.data_ptr() == row.data_ptr() == flat.data_ptr() == address


def test_modules_are_raised_when_called_and_come_back_bit_for_bit() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).to(torch.bfloat16)
    net(torch.rand(5, 3, dtype=torch.bfloat16)).sum().backward()
    before = copy.deepcopy(net.state_dict())
    gradients = [(p.grad, p.grad.clone(), p.data_ptr()) for p in net.parameters()]
    with pytest.raises(KeyError), in_double():
        net(torch.rand(5, 3)).sum().backward()
        assert all(p.dtype is p.grad.dtype is torch.float64 for p in net.parameters())
        raise KeyError
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items() if "tracked" not in name)
    for parameter, (gradient, values, address) in zip(net.parameters(), gradients, strict=True):
        assert parameter.grad is gradient
        assert torch.equal(gradient, values)
        assert parameter.data_ptr() == address


def test_global_settings_stay_in_double_and_come_back() -> None:
    with in_double():
        torch.set_default_dtype(torch.float32)
        assert torch.get_default_dtype() is torch.float64
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch deprecates it
            torch.set_default_tensor_type(torch.FloatTensor)
        assert torch.get_default_dtype() is torch.float64
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not torch.is_autocast_enabled("cpu")
    assert torch.get_default_dtype() is torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.is_autocast_enabled("cpu")


def test_operators_inside_backward_are_seen() -> None:
    low = torch.rand(3)

    class Scale(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x * low

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return torch.stack([gradient[0], *low[1:]]).to(torch.float32) * gradient

    with in_double():
        x = torch.rand(3, requires_grad=True)
        Scale.apply(x).sum().backward()
        assert x.grad is not None
        assert x.grad.dtype is torch.float64


def test_saved_tensors_are_loaded_with_the_bytes_they_were_saved_with(tmp_path: object) -> None:
    path = f"{tmp_path}/weights.pt"
    saved = {"a": torch.rand(3), "b": torch.rand(3, dtype=torch.bfloat16)}
    torch.save(saved, path)
    with in_double():
        loaded = torch.load(path)
        layer = nn.Linear(3, 1, bias=False)
        layer.load_state_dict({"weight": loaded["a"][None]})
        assert layer.weight.dtype is torch.float64
        assert torch.equal(layer.weight[0], saved["a"].to(torch.float64))
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)
