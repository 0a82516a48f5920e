import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException
from torch.nn import functional as F

from frostline.tracing import fake_tensors

CASES = {
    "nonzero": lambda x: x.nonzero(),
    "nonzero as tuple": lambda x: x.nonzero(as_tuple=True)[1],
    "masked_select": lambda x: x.masked_select(x > 0),
    "mask": lambda x: x[x > 0],
    "mask of rows": lambda x: x[(x > 0).all(1)],
    "mask and slice": lambda x: x.unsqueeze(0)[:, (x > 0).all(1)],
    "unique": lambda x: torch.unique(x, return_inverse=True, return_counts=True),
    "unique rows": lambda x: torch.unique(x, dim=0, return_inverse=True),
    "unique_consecutive": lambda x: torch.unique_consecutive(x, return_counts=True),
}


def layout(value):
    outputs = value if isinstance(value, tuple) else (value,)
    return [(tuple(output.shape), output.dtype, output.stride()) for output in outputs]


@pytest.mark.parametrize("case", CASES)
def test_the_most_there_can_be_is_what_the_real_operator_returns_where_all_is_true(case):
    real = layout(CASES[case](torch.arange(1.0, 13.0).reshape(4, 3)))
    with fake_tensors(bound=1000) as mode:
        assert layout(CASES[case](torch.randn(4, 3))) == real
    assert any(text.startswith("the size of what aten.") for text in mode.guesses)
    assert all("test_bounded.py:" in text for text in mode.guesses)


@pytest.mark.parametrize("case", CASES)
def test_a_bound_is_kept(case):
    with fake_tensors(bound=2):
        shapes = [shape for shape, _, _ in layout(CASES[case](torch.randn(4, 3)))]
    assert 2 in shapes[0]


@pytest.mark.parametrize("case", CASES)
def test_without_a_bound_it_raises(case):
    with fake_tensors(), pytest.raises(DynamicOutputShapeException):
        CASES[case](torch.randn(4, 3))


def test_gradients_flow_back_through_a_bounded_selection():
    with fake_tensors(bound=5):
        x = torch.randn(4, 3, requires_grad=True)
        (x[x > 0].sum() + x.masked_select(x > 0).sum()).backward()
    assert x.grad.shape == (4, 3)


def test_ctc_keeps_the_paths_of_the_longest_target():
    def loss():
        scores = torch.randn(20, 2, 5, requires_grad=True)
        targets = torch.randint(1, 5, (2, 6))
        return F.ctc_loss(scores.log_softmax(-1), targets, torch.full((2,), 20), torch.full((2,), 6))

    real = loss().grad_fn.next_functions[0][0].next_functions[0][0]._saved_result1.shape
    with fake_tensors(bound=6):
        fake = loss().grad_fn.next_functions[0][0].next_functions[0][0]._saved_result1.shape
    assert fake == real == (2, 20, 13)


def test_repeats_are_as_many_as_the_bound():
    with fake_tensors(bound=7):
        assert torch.repeat_interleave(torch.tensor([2, 3])).shape == (7,)


def test_another_operator_raises_as_without_a_bound():
    with fake_tensors(bound=7), pytest.raises(DynamicOutputShapeException):
        torch.bincount(torch.tensor([2, 3]))


def test_truth_is_guessed_as_told():
    for truth in (True, False):
        with fake_tensors(truth=truth) as mode:
            assert bool(torch.zeros(2).any()) is truth
        assert mode.num_truths == 1
