"""Models and steps without memory: tensors that know their shape and bytes, and have no values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from frostline.errors import DeviceError
from frostline.tracing.bounded import bounded_output
from frostline.tracing.layouts import RULES, as_real_kernels_do
from frostline.where import user_line

Model = TypeVar("Model", bound=nn.Module)


class FakeTensors(FakeTensorMode):
    """A fake tensor mode that guesses where a step asks for a value.

    Numbers are guessed as 1, `torch.equal` as True, truth values as told. Real tensors that meet fake ones are
    read as fakes of the same shape.

    Args:
        bound: The most entries that an operator returns whose size depends on values, such as `torch.nonzero`;
            it is taken to return so many, or as many as it can. Without one it raises.
        truth: What a truth value is guessed as.

    Attributes:
        guesses: How often each guess was made, by its text: what was asked and the user's line.
        num_truths: How often a truth value was guessed.
    """

    def __init__(self, *, bound: int | None = None, truth: bool = True) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self._bound, self._truth = bound, truth
        self.num_truths = 0
        self.guesses: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator on shapes alone."""
        kwargs = kwargs or {}
        device = kwargs.get("device")
        on_cuda = device is not None and torch.device(device).type == "cuda"
        if on_cuda and not torch.backends.cuda.is_built():
            raise DeviceError(  # autograd would abort the whole process at the first operator on it
                "a fake CUDA tensor needs a CUDA build of torch, this one is for CPUs",
                where=user_line(),
                do="build model and inputs on the CPU: the bytes are the same",
            )
        try:
            output = super().__torch_dispatch__(func, types, args, kwargs)
            if func in RULES:
                with self:
                    output = as_real_kernels_do(func, args, output)
            return output
        except DataDependentOutputException:
            if func is torch.ops.aten._local_scalar_dense.default:
                is_truth = args[0].dtype is torch.bool
                self.num_truths += is_truth
                guess = self._truth if is_truth else 1.0 if args[0].is_floating_point() else 1
            elif func is torch.ops.aten.equal.default:
                guess = True
            else:
                raise
            self._note(f"a value asked of a tensor, guessed as {guess}")
            return guess
        except DynamicOutputShapeException:
            if self._bound is None:
                raise
            with self:
                output, num_entries = bounded_output(func, args, kwargs, self._bound)
            self._note(f"the size of what {func} returns, taken as {num_entries}")
            return output

    def _note(self, guess: str) -> None:
        self.guesses[f"{guess}, at {user_line() or 'torch itself'}"] += 1


def fake_tensors(*, bound: int | None = None, truth: bool = True) -> FakeTensors:
    """A mode to enter: inside it every new CPU tensor is fake.

    Args:
        bound: See `FakeTensors`.
        truth: The same.
    """
    return FakeTensors(bound=bound, truth=truth)


def build_fake(factory: Callable[[], Model], mode: FakeTensors) -> Model:
    """Build a model of any size in no memory.

    It is built on torch's meta device with the initialisers of `torch.nn.init` switched off, then every
    parameter, buffer and tensor attribute becomes a fake CPU tensor of `mode`; ties stay ties.

    Args:
        factory: Makes the model; it must not ask a tensor for its values.
        mode: The mode the model's tensors will belong to.
    """
    with _no_initialisation(), torch.device("meta"):
        model = factory()
    fakes: dict[Tensor, Tensor] = {}  # tensors hash by identity
    with mode:
        for module in model.modules():
            for name, tensor in _own_tensors(module):
                if tensor not in fakes:
                    fakes[tensor] = _fake(tensor)
                setattr(module, name, fakes[tensor])
    return model


def _own_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    attributes = {**vars(module), **module._buffers, **module._parameters}
    return [(name, value) for name, value in attributes.items() if isinstance(value, Tensor)]


def _fake(tensor: Tensor) -> Tensor:
    fake = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cpu")
    return nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake


@contextmanager
def _no_initialisation() -> Iterator[None]:
    names = [name for name in vars(nn.init) if name.endswith("_") and not name.startswith("_")]
    originals = {name: getattr(nn.init, name) for name in names}
    try:
        for name in names:
            setattr(nn.init, name, _leave_as_it_is)
        yield
    finally:
        for name, original in originals.items():
            setattr(nn.init, name, original)


def _leave_as_it_is(tensor: Tensor, *args: object, **kwargs: object) -> Tensor:
    return tensor
