import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from frostline.errors import DeviceError
from frostline.tracing import build_fake, fake_tensors


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(100, 8)
        self.head = nn.Linear(8, 100, bias=False)
        self.head.weight = self.embedding.weight
        self.norm = nn.BatchNorm1d(100)
        self.register_buffer("scratch", torch.zeros(3), persistent=False)
        self.scale = torch.ones(2, 8).t()
        self.embedding.requires_grad_(False)

    def forward(self, ids):
        return self.norm(self.head(self.embedding(ids)))


def test_a_fake_model_has_the_shape_of_the_real_one_and_its_ties():
    mode = fake_tensors()
    fake, real = build_fake(Tied, mode), Tied()
    assert list(fake.state_dict()) == list(real.state_dict())
    assert fake.head.weight is fake.embedding.weight
    assert fake.scale.stride() == real.scale.stride()
    for name, parameter in real.named_parameters():
        twin = fake.get_parameter(name)
        assert isinstance(twin.data, FakeTensor) and isinstance(twin, nn.Parameter)
        assert (twin.shape, twin.dtype, twin.device.type) == (parameter.shape, parameter.dtype, "cpu")
        assert twin.requires_grad == parameter.requires_grad
    assert all(isinstance(tensor, FakeTensor) for tensor in [*fake.buffers(), fake.scale])
    with mode:
        assert fake(torch.randint(0, 100, (7,))).shape == (7, 100)


def test_a_model_larger_than_any_machine_is_built_in_no_time():
    huge = build_fake(lambda: nn.Linear(2**20, 2**20), fake_tensors())
    assert huge.weight.untyped_storage().nbytes() == 2**42


def test_initialisers_come_back_also_after_an_error():
    before = dict(vars(nn.init))
    with pytest.raises(TypeError):
        build_fake(lambda: nn.Linear("two", 2), fake_tensors())
    assert dict(vars(nn.init)) == before


def test_a_recurrent_net_finds_its_fake_weights():
    mode = fake_tensors()
    model = build_fake(lambda: nn.GRU(4, 4), mode)
    with mode:
        assert model(torch.randn(3, 2, 4))[0].shape == (3, 2, 4)


def test_a_value_that_is_asked_for_is_guessed_and_told():
    mode = fake_tensors()
    with mode:
        x = torch.randn(3)
        assert x.sum().item() == 1.0
        assert x.argmax().item() == 1
        assert bool((x > 0).any()) is True
        assert torch.equal(x, torch.randn(3)) is True
        assert torch.tensor(3.0).item() == 3.0
    assert sum(mode.guesses.values()) == 4
    assert all("guessed as" in text and "at test_fake.py:" in text for text in mode.guesses)


def test_a_real_tensor_is_read_as_a_fake_one():
    real = torch.ones(3)
    with fake_tensors():
        assert isinstance(real + torch.ones(3), FakeTensor)


@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="a CUDA build may make fake CUDA tensors")
def test_a_fake_cuda_tensor_is_refused_before_it_aborts_the_process():
    with fake_tensors(), pytest.raises(DeviceError) as raised:
        torch.ones(2, device="cuda")
    assert "a fake CUDA tensor needs a CUDA build of torch" in str(raised.value)
    assert "where  test_fake.py:" in str(raised.value) and "do     build model" in str(raised.value)
