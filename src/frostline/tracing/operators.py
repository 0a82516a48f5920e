"""What a flow trace has to know of single operators of torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import resolve_name

from frostline.tracing.event import EventKind

_TENSOR: Any = Tensor  # its attributes are descriptors, which the type stubs do not say
GRAD_GET, GRAD_SET = _TENSOR.grad.__get__, _TENSOR.grad.__set__
_DATA_GET, DATA_SET = _TENSOR.data.__get__, _TENSOR.data.__set__
REQUIRES_GRAD = frozenset({_TENSOR.requires_grad_, _TENSOR.requires_grad.__set__})

_ATTRIBUTES = (
    "shape is_leaf dtype device grad_fn requires_grad ndim layout is_sparse names _version is_quantized is_cuda "
    "itemsize nbytes is_nested is_meta is_cpu _base name output_nr retains_grad is_mkldnn is_xla is_mps is_xpu"
)
READ_ONLY = frozenset(
    [getattr(Tensor, name).__get__ for name in _ATTRIBUTES.split() if hasattr(getattr(Tensor, name, None), "__get__")]
    + [
        Tensor.size, Tensor.dim, Tensor.stride, Tensor.numel, Tensor.nelement, Tensor.is_floating_point,
        Tensor.is_complex, Tensor.storage_offset, Tensor.is_contiguous, Tensor.data_ptr, Tensor.element_size,
        Tensor.get_device, Tensor.__len__, Tensor.__repr__, Tensor.untyped_storage, Tensor.is_inference,
        Tensor.__hash__, Tensor.register_hook, Tensor.retain_grad, Tensor.is_pinned, Tensor.__format__,
        torch.is_complex, torch.is_floating_point, torch.numel, torch.is_grad_enabled,
        Tensor.register_post_accumulate_grad_hook, Tensor.__reduce_ex__, Tensor.__deepcopy__, Tensor.type,
    ]
)  # fmt: skip
"""Operators that say something of a tensor and make none."""

HOOKS = frozenset({Tensor.register_hook})

SHAPE_ONLY = frozenset(
    {
        torch.zeros_like, torch.ones_like, torch.rand_like, torch.randn_like, torch.empty_like, torch.full_like,
        torch.randint_like, Tensor.new_zeros, Tensor.new_ones, Tensor.new_empty, Tensor.new_full,
        Tensor.new_empty_strided,
    }
)  # fmt: skip
"""Operators that read a tensor's shape and not its values."""

ESCAPES = {
    Tensor.item: ".item()",
    Tensor.tolist: ".tolist()",
    Tensor.numpy: ".numpy()",
    Tensor.__float__: "float()",
    Tensor.__array__: "numpy.asarray()",
    Tensor.__dlpack__: "dlpack",
}
"""Operators that take values out of torch; truth values and indices steer a program and are left alone."""

CLIPS = frozenset({Tensor.clamp_, Tensor.clip_, torch.clamp_, torch.clip_})
"""Operators by which programs clip gradients by hand."""

SCALES = frozenset({Tensor.mul_, Tensor.div_, Tensor.__imul__})
"""They clip where the factor is a tensor: a norm's, not a number of processes."""

_KINDS: dict[Any, EventKind] = {
    Tensor.detach: "detach",
    torch.detach: "detach",
    Tensor.detach_: "detach",
    _DATA_GET: "data",
    torch.tensor: "rewrap",
    torch.asarray: "rewrap",
    Tensor.new_tensor: "rewrap",
    torch.autograd.grad: "gradient",
}
_WITH_NUMBER = {
    Tensor.mul: 1, Tensor.__rmul__: 1, Tensor.div: -1, Tensor.true_divide: -1, torch.mul: 1, torch.div: -1,
    Tensor.__rdiv__: 0, Tensor.mul_: 1, Tensor.div_: -1, Tensor.__mul__: 1, Tensor.__truediv__: -1,
}  # fmt: skip
_ALWAYS_RANDOM = frozenset(
    {
        torch.rand, torch.randn, torch.randint, torch.randperm, torch.rand_like, torch.randn_like, torch.randint_like,
        torch.bernoulli, torch.multinomial, torch.normal, torch.poisson, Tensor.bernoulli, Tensor.bernoulli_,
        Tensor.normal_, Tensor.uniform_, Tensor.random_, Tensor.exponential_, Tensor.multinomial, Tensor.cauchy_,
        Tensor.geometric_, Tensor.log_normal_, F.gumbel_softmax,
    }
)  # fmt: skip
_DROPOUTS = frozenset(
    {
        F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout,
        torch.dropout_, torch.alpha_dropout, torch.feature_dropout, torch.feature_alpha_dropout, torch.native_dropout,
    }
)  # fmt: skip
_RECURRENT = frozenset({torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu})
_NO_DERIVATIVE = frozenset(
    """
    round floor ceil trunc sign sgn fix heaviside argmax argmin argsort eq ne lt le gt ge greater less equal
    greater_equal less_equal not_equal floor_divide searchsorted bucketize one_hot logical_and logical_or logical_not
    isnan isfinite isinf long int bool short byte type nonzero bincount histc unique bitwise_and
    round_ floor_ ceil_ trunc_ sign_ __floordiv__ __eq__ __lt__ __gt__ __le__ __ge__ __ne__ bernoulli multinomial
    normal poisson binomial
    """.split()
)


def event_kind(func: Any) -> EventKind:
    """What sort of operator it is, as far as gradients are concerned."""
    return _KINDS.get(func, "op")


def has_no_derivative(op: str) -> bool:
    """Whether an operator of this name is constant wherever it has a derivative, or has an integer result."""
    return op.rpartition(".")[2] in _NO_DERIVATIVE


def name_of(func: Any) -> str:
    """An operator's name as programs write it."""
    if func == _DATA_GET:
        return ".data"
    name: str = resolve_name(func) or getattr(func, "__name__", str(func))
    return name.removeprefix("torch.").removeprefix("_C.")


def draws_random_numbers(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether this call of an operator advances a random generator."""
    if func in _ALWAYS_RANDOM:
        return True
    if func in _DROPOUTS:
        p = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
        training = kwargs.get("training", kwargs.get("train", args[2] if len(args) > 2 else True))
        return bool(training) and p > 0
    if func in _RECURRENT:
        return len(args) > 6 and bool(args[6]) and args[5] > 0
    if func is F.scaled_dot_product_attention:
        return bool(kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0))
    if func is F.multi_head_attention_forward:
        return bool(kwargs.get("training", True)) and args[10] > 0
    return False


def factor_of(func: Any, args: tuple[Any, ...]) -> float | None:
    """The plain number a tensor is multiplied by, for a product or quotient with one; None for all else."""
    sign = _WITH_NUMBER.get(func)
    if sign is None or len(args) < 2:
        return None
    number = next((arg for arg in args[:2] if isinstance(arg, (int, float))), None)
    if number is None or not number:
        return None if number is None else 0.0
    return float(number) if sign > 0 else 1.0 / number


_CONVOLUTIONS = frozenset(
    {
        F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
        torch.conv1d, torch.conv2d, torch.conv3d,
    }
)  # fmt: skip


def keeps_needless_input(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a frozen operator saves its input, though the input's gradient needs the weight alone.

    torch saves the inputs of convolutions and of BatchNorm in eval mode whether or not their weights train
    (pytorch/pytorch#133566).
    """
    if not args:
        return False  # all by name: not worth the look
    if func in _CONVOLUTIONS:
        weight = kwargs.get("weight", args[1] if len(args) > 1 else None)
        return isinstance(weight, Tensor) and not weight.requires_grad and args[0].requires_grad
    if func is F.batch_norm and not kwargs.get("training", args[5] if len(args) > 5 else False):
        weight = kwargs.get("weight", args[3] if len(args) > 3 else None)
        return args[0].requires_grad and not (isinstance(weight, Tensor) and weight.requires_grad)
    return False


def keeps_result(node: Any) -> bool:
    """Whether a node of autograd's graph saves its own result, as those of ReLU, LeakyReLU in place and tanh do."""
    return hasattr(type(node), "_saved_result")


def running_statistics(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
    """What a call of `F.batch_norm` is to update: nothing in eval mode."""
    if not kwargs.get("training", args[5] if len(args) > 5 else False):
        return ()
    given = (*args[1:3], kwargs.get("running_mean"), kwargs.get("running_var"))
    return tuple(tensor for tensor in given if isinstance(tensor, Tensor))


_SOFTMAXES = frozenset({F.softmax, F.log_softmax, torch.softmax, torch.log_softmax, Tensor.softmax, Tensor.log_softmax})


def is_over_one_element(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether this is a softmax over a dimension of size 1, a cross-entropy over one class among them."""
    if func is F.cross_entropy:
        return bool(args[0].dim() > 1 and args[0].shape[1] == 1)
    if func is F.layer_norm:
        return all(size == 1 for size in args[1])
    if func not in _SOFTMAXES or not args:
        return False
    dim = kwargs.get("dim", args[1] if len(args) > 1 else -1)
    return isinstance(dim, int) and bool(args[0].dim() > 0 and args[0].shape[dim] == 1)


_UPDATES = ("sub_", "add_", "__isub__", "__iadd__", "addcmul_", "addcdiv_", "_foreach_add_", "_foreach_sub_")


def is_update(func: Any) -> bool:
    """Whether an operator in place is one by which programs step parameters by hand; copying and clamping are not."""
    return func == DATA_SET or getattr(func, "__name__", "") in _UPDATES


def is_sum(func: Any, kwargs: dict[str, Any]) -> bool:
    """Whether an operator sums over elements, where others take the mean."""
    return func in (Tensor.sum, torch.sum) or kwargs.get("reduction") == "sum"


@cache  # functions of torch: a few hundred
def is_in_place(func: Callable[..., Any]) -> bool:
    """Whether an operator's name says that it writes to its first argument."""
    name = getattr(func, "__name__", "")
    if name == "__set__":
        return bool(func == DATA_SET)
    if name.startswith("__"):
        return name in ("__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__")
    return name.endswith("_") and func not in REQUIRES_GRAD
