import pytest
import torch
from torch.nn import functional as F

from frostline.tracing import fake_tensors


def randn(*shape):
    return torch.randn(shape).requires_grad_()


CASES = {
    "layer norm": lambda: (F.layer_norm, randn(4, 6, 8), (8,)),
    "layer norm of a transposed input": lambda: (F.layer_norm, randn(4, 8, 6).transpose(1, 2), (8,)),
    "log_softmax": lambda: (F.log_softmax, randn(4, 6, 8), -1),
    "softmax": lambda: (F.softmax, randn(4, 6, 8), -1),
    "batch norm": lambda: (F.batch_norm, randn(2, 4, 8, 8), torch.zeros(4), torch.ones(4), None, None, True),
    "batch norm, channels last": lambda: (
        F.batch_norm,
        randn(2, 8, 8, 4).permute(0, 3, 1, 2),
        torch.zeros(4),
        torch.ones(4),
        None,
        None,
        True,
    ),
    "reflection": lambda: (F.pad, randn(2, 8, 8, 4).permute(0, 3, 1, 2), (1, 1, 1, 1), "reflect"),
    "elu": lambda: (F.elu, randn(4, 6, 8)),
    "softplus": lambda: (F.softplus, randn(4, 6, 8)),
    "hardswish": lambda: (F.hardswish, randn(4, 6, 8)),
    "gelu": lambda: (F.gelu, randn(4, 6, 8)),
    "mse": lambda: (F.mse_loss, randn(4, 6), randn(4, 6)),
    "smooth l1": lambda: (F.smooth_l1_loss, randn(4, 6), randn(4, 6)),
    "binary cross-entropy": lambda: (F.binary_cross_entropy, randn(4, 6).sigmoid(), torch.rand(4, 6)),
    "soft margin": lambda: (F.soft_margin_loss, randn(4, 6), torch.ones(4, 6)),
    "unfold": lambda: (F.unfold, randn(2, 3, 8, 8), 3),
    "fold": lambda: (F.fold, randn(2, 27, 36), (8, 8), 3),
}


def gradients(shape):
    yield torch.ones(shape)
    yield torch.ones(()).expand(shape)
    if len(shape) > 1:
        yield torch.ones(tuple(reversed(shape))).permute(*reversed(range(len(shape))))
    if len(shape) == 4:
        yield torch.ones(shape).contiguous(memory_format=torch.channels_last)


def layouts(case):
    """Strides and storage bytes of the output, and of the input's gradient for output gradients of several layouts."""
    function, x, *rest = CASES[case]()
    output = function(x, *rest)
    found = [(output.shape, output.stride(), output.untyped_storage().nbytes())]
    for grad in gradients(output.shape):
        (result,) = torch.autograd.grad(output, x, grad, retain_graph=True)
        found.append((result.shape, result.stride(), result.untyped_storage().nbytes()))
    return found


@pytest.mark.parametrize("case", CASES)
def test_a_fake_output_lies_in_memory_as_the_real_one(case):
    real = layouts(case)
    with fake_tensors():
        assert layouts(case) == real
