"""A model of CUDA on tensors that lie on the CPU: its kernels, its optimizers and its allocator, without a GPU.

A fake CUDA tensor would abort a CPU build of torch at the first operator of autograd. So the tensors stay on the CPU,
and the operators whose memory differs there are replaced below Python, where every caller goes through.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.optim.optimizer as torch_optimizer
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils

from frostline.memory.cuda_attention import cuda_attention
from frostline.memory.cuda_autocast import cuda_autocast
from frostline.patches import wrapped
from frostline.tracing import AllocationLog

_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_aten = torch.ops.aten

CUDA_ALWAYS = (
    "optimizers and gradient clipping take their foreach implementations, as is the default on CUDA",
    "autocast runs CUDA's float32 operators in float32; 'cuda' in the step is the device that is modelled",
    "a GPU of compute capability 8 or later, one stream, an allocator with default settings",
)


@dataclass
class CudaModel:
    """What was replaced while `cuda_model` was active.

    Attributes:
        replaced: How often, by the text that says what.
    """

    replaced: Counter[str] = field(default_factory=Counter)

    def assumptions(self) -> tuple[str, ...]:
        """What the prediction takes for granted, a line each."""
        return (*CUDA_ALWAYS, *(f"{text} ({count} times)" for text, count in self.replaced.items()))

    def dropout(self, tensor: Tensor, p: float, train: bool) -> Tensor:
        """Keep a mask of one byte an element, where the CPU keeps one in the tensor's own dtype."""
        if not train or not 0 < p < 1 or not tensor.numel():
            result: Tensor = _aten.dropout.default._op_dk(_COMPOSITE, tensor, p, train)
            return result
        self.replaced["dropout keeps a mask of one byte an element"] += 1
        result = _aten.native_dropout(tensor, p, True)[0]
        return result

    def attention(self, *args: Any, **kwargs: Any) -> Tensor:
        """Take the kernel that CUDA would take."""
        output, kernel = cuda_attention(*args, **kwargs)
        self.replaced[f"scaled_dot_product_attention by the {kernel} kernel"] += 1
        return output

    def rms_norm(
        self, tensor: Tensor, shape: list[int], weight: Tensor | None = None, eps: float | None = None
    ) -> Tensor:
        """Keep the input and one number a row, where the CPU keeps every intermediate result."""
        if weight is not None and weight.dtype != tensor.dtype:
            result: Tensor = _aten.rms_norm.default._op_dk(_COMPOSITE, tensor, shape, weight, eps)
            return result
        self.replaced["rms_norm as one fused kernel"] += 1
        result = _FusedRMSNorm.apply(tensor, weight, len(shape))  # type: ignore[no-untyped-call]
        return result


class _FusedRMSNorm(torch.autograd.Function):
    """The shapes of ``_fused_rms_norm`` and of its gradient; the values are not computed."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, weight: Tensor | None, num_dims: int) -> Tensor:
        """Make the output and the reciprocal root of each row, and keep the latter."""
        rows = tensor.shape[: tensor.dim() - num_dims]
        dtype = torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.dtype
        ctx.save_for_backward(tensor, weight, tensor.new_empty((*rows, *[1] * num_dims), dtype=dtype))
        return torch.empty_like(tensor, memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Make the gradients that are wanted."""
        tensor, weight, _ = ctx.saved_tensors
        wanted = zip((tensor, weight), ctx.needs_input_grad[:2], strict=True)
        return (*(torch.empty_like(value) if needs else None for value, needs in wanted), None)


class CudaIsHere(TorchFunctionMode):
    """Read the device 'cuda' in the arguments of torch's functions as another one.

    Args:
        device: Which.
    """

    def __init__(self, device: Literal["cpu", "meta"]) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Call with the other device."""
        if func is Tensor.cuda:
            return args[0]
        kwargs = {name: self._here(value) for name, value in (kwargs or {}).items()}
        return func(*(self._here(value) for value in args), **kwargs)

    def _here(self, value: Any) -> Any:
        if isinstance(value, torch.device):
            return torch.device(self._device) if value.type == "cuda" else value
        return self._device if isinstance(value, str) and value.partition(":")[0] == "cuda" else value


@contextmanager
def cuda_model() -> Iterator[CudaModel]:
    """Inside, fake tensors on the CPU need the memory of tensors on CUDA; `replaced` says where that differs."""
    model = CudaModel()
    with ExitStack() as stack:
        library = torch.library.Library("aten", "IMPL")
        stack.callback(library._destroy)
        library.impl("dropout", model.dropout, "AutogradCPU")
        library.impl("scaled_dot_product_attention", model.attention, "AutogradCPU")
        library.impl("rms_norm", model.rms_norm, "AutogradCPU")
        stack.enter_context(cuda_autocast())
        for module in (torch_optimizer, _foreach_utils):
            stack.enter_context(wrapped(module, "_get_foreach_kernels_supported_devices", _with_cpu))
        stack.enter_context(CudaIsHere("cpu"))
        yield model


def as_cuda(log: AllocationLog) -> None:
    """Say of every storage of a log that it lies on CUDA, but for the step counts that optimizers keep on the CPU."""
    for allocation in log.allocations:
        if not (allocation.kind == "optimizer state" and allocation.shape == ()):
            allocation.device = "cuda"


def _with_cpu(devices: Callable[[], list[str]]) -> Callable[[], list[str]]:
    return lambda: [*devices(), "cpu"]
