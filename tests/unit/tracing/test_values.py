import pytest
import torch

from frostline.tracing import fake_tensors, fingerprint, has_values
from frostline.tracing.values import gradient_state, magnitude_of, tensors_in

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64, torch.int64, torch.uint8]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 7), (4, 8), (0,), (2, 0)])
def test_a_fingerprint_changes_with_every_single_element(dtype, shape):
    tensor = (torch.arange(torch.Size(shape).numel()).reshape(shape) + 1).to(dtype)
    before = fingerprint(tensor)
    assert isinstance(before, int)
    assert fingerprint(tensor.clone()) == before
    for index in range(tensor.numel()):
        tensor.view(-1)[index] += 1
        assert fingerprint(tensor) != before
        tensor.view(-1)[index] -= 1
    assert fingerprint(tensor) == before


def test_the_smallest_changes_count():
    tensor = torch.ones(3)
    before = fingerprint(tensor)
    tensor[1] = torch.nextafter(tensor[1], torch.tensor(2.0))
    assert fingerprint(tensor) != before
    zero = torch.zeros(2)
    before = fingerprint(zero)
    zero[0] = -0.0  # another bit pattern
    assert fingerprint(zero) != before
    zero[0] = float("nan")
    assert fingerprint(zero) == fingerprint(zero.clone())


def test_layout_does_not_matter():
    tensor = torch.randn(4, 6)
    assert fingerprint(tensor.t()) == fingerprint(tensor.t().contiguous())
    odd = torch.randn(9)[1:]  # not where an int64 may begin
    assert fingerprint(odd) == fingerprint(odd)
    image = torch.randn(2, 3, 4, 4)
    assert fingerprint(image.to(memory_format=torch.channels_last)) == fingerprint(image)
    sparse = torch.sparse_coo_tensor(
        torch.tensor([[0, 0, 2]]), torch.tensor([1.0, 2.0, 3.0]), (4,), check_invariants=True
    )
    before = fingerprint(sparse)
    assert before == fingerprint(sparse.coalesce())
    assert fingerprint(sparse * 2) != before


def test_a_fingerprint_leaves_tensor_and_mode_alone():
    tensor = torch.ones(3, requires_grad=True)
    version = tensor._version
    fingerprint(tensor)
    assert (tensor._version, tensor.grad, torch.is_grad_enabled()) == (version, None, True)


@pytest.mark.parametrize(
    ("gradient", "state"),
    [
        (None, "none"),
        ([0.0, 0.0], "zero"),
        ([0.0, -0.0], "zero"),
        ([0.0, -1e-45], "finite"),
        ([-3e38, 3e38], "finite"),
        ([1.0, float("nan")], "nonfinite"),
        ([float("nan"), 0.0], "nonfinite"),
        ([float("-inf"), 0.0], "nonfinite"),
    ],
)
def test_the_state_of_a_gradient(gradient, state):
    tensor = torch.zeros(2, requires_grad=True)
    tensor.grad = None if gradient is None else torch.tensor(gradient)
    assert gradient_state(tensor) == state


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_largest_magnitude(dtype):
    tensor = torch.tensor([[1.0, -7.0], [3.0, 0.5]], dtype=dtype)
    assert float(magnitude_of(tensor)) == 7.0
    assert float(magnitude_of(tensor.t())) == 7.0
    assert float(magnitude_of(tensor[0, 0])) == 1.0


def test_magnitudes_of_unusual_tensors():
    assert float(magnitude_of(torch.zeros(0, 3))) == 0.0
    assert float(magnitude_of(torch.zeros(2, dtype=torch.complex64))) == 0.0
    assert float(magnitude_of(torch.tensor([3 - 4j]))) > 0
    assert not float(magnitude_of(torch.tensor([complex("nan")]))) < float("inf")
    sparse = torch.sparse_coo_tensor(torch.tensor([[1, 1]]), torch.tensor([2.0, -2.0]), (4,), check_invariants=True)
    assert float(magnitude_of(sparse)) == 0.0  # its values add up
    nested = torch.nested.nested_tensor([torch.ones(2), torch.full((3,), -5.0)], layout=torch.jagged)
    assert float(magnitude_of(nested)) == 5.0


def test_magnitudes_are_not_read_and_have_no_graph():
    tensor = torch.ones(2, requires_grad=True) * 2
    magnitude = magnitude_of(tensor)
    assert isinstance(magnitude, torch.Tensor) and not magnitude.requires_grad


def test_fake_and_meta_tensors_have_no_values():
    with fake_tensors():
        fake = torch.ones(3, requires_grad=True)
        fake.grad = torch.ones(3)
        assert not has_values(fake)
        assert fingerprint(fake) is None
        assert gradient_state(fake) == "unread"
    assert not has_values(torch.ones(3, device="meta"))
    assert fingerprint(torch.ones(3, device="meta")) is None
    assert has_values(torch.ones(3))


def test_tensors_in_nested_arguments():
    a, b, c = torch.ones(1), torch.ones(2), torch.ones(3)
    assert [len(t) for t in tensors_in((a, [b, 3, "x", None], {"k": (c,)}))] == [1, 2, 3]
    assert list(tensors_in({"a": 1})) == []
