"""Run a program in float64 that was written for a lower precision, and give it its tensors back as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._pytree import tree_leaves, tree_map

from frostline.patches import wrapped
from frostline.tracing.operators import READ_ONLY, is_in_place

_UP = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}
_HIGH = frozenset(_UP.values())
_CASTS = {Tensor.float: torch.float32, Tensor.half: torch.float16, Tensor.bfloat16: torch.bfloat16}
_FROM_DATA = frozenset({torch.tensor, torch.as_tensor, torch.asarray})
_READS_BYTES = frozenset({Tensor.view, torch.frombuffer})  # a dtype says how to read bytes that are there
_LOW_NAMES = ("FloatTensor", "HalfTensor", "BFloat16Tensor")


class DoublePrecision(TorchFunctionMode):
    """Make operators that meet float64 and a lower precision compute in float64, and casts to a lower one do nothing.

    Operators on lower-precision tensors and whole numbers alone run as they are: nothing in float64 influences them.
    Enter it with `in_double`.

    Attributes:
        paused: Whether operators pass as they are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.paused = False
        self._raised: list[tuple[Tensor, Tensor, Tensor | None]] = []
        self._default = torch.get_default_dtype()
        self._dtypes: dict[int, torch.dtype] = {}
        # By storage: the storage itself, so that its address is not given to another, and its values in float64.
        self._copies: dict[tuple[int, torch.dtype], tuple[Any, Tensor]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operator."""
        kwargs = kwargs or {}
        if self.paused or (func in READ_ONLY and func is not Tensor.type):
            return func(*args, **kwargs)
        if func in _CASTS and not args[0].is_complex():
            func, args = Tensor.to, (args[0], _CASTS[func])
        if func is Tensor.to and self._makes_copy(args, kwargs):
            kwargs = {**kwargs, "copy": True}
        if func is Tensor.type and len(args) > 1:
            args = (args[0], _double_name(args[1]), *args[2:])
        if func not in _READS_BYTES and not _is_shell(func, args):
            args = tuple(_double_dtype(arg) for arg in args)
            kwargs = {name: _double_dtype(value) for name, value in kwargs.items()}
        if any(self._is_high(leaf) for leaf in tree_leaves((args, kwargs))):
            self._raise_written(func, args, kwargs)
            args, kwargs = tree_map(self._lifted, (args, kwargs))
        out = func(*args, **kwargs)
        if func in _FROM_DATA and not isinstance(args[0], Tensor):
            out = self._lifted(out)
        return out

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Let operators inside the block pass as they are."""
        paused, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = paused

    def raise_(self, tensor: Tensor, *, isolate: bool = False) -> None:
        """Turn a tensor into float64 in place, its gradient too; what shares its memory still does where it is raised.

        Args:
            tensor: Of any dtype.
            isolate: Give it memory of its own where it is of another dtype, so that what is written to it is lost.
        """
        if tensor.is_inference() or id(tensor) in self._dtypes or not (isolate or tensor.dtype in _UP):
            return
        with self.aside(), torch.no_grad():
            original, gradient = tensor.data, tensor.grad if tensor.is_leaf else None
            if gradient is not None:
                tensor.grad = None
            tensor.data = self._copy(original)
            if gradient is not None:
                tensor.grad = gradient.to(tensor.dtype, copy=True)
            self._raised.append((tensor, original, gradient))
            self._dtypes[id(tensor)] = original.dtype

    def reset(self) -> None:
        """Give every raised tensor the values it was raised with."""
        with self.aside(), torch.no_grad():
            for tensor, original, _ in self._raised:
                tensor.data.copy_(original)

    def lower(self) -> None:
        """Give every raised tensor its own memory, dtype and gradient back."""
        with self.aside(), torch.no_grad():
            for tensor, original, gradient in reversed(self._raised):
                if tensor.is_leaf:
                    tensor.grad = None
                tensor.data = original
                if gradient is not None:
                    tensor.grad = gradient
        self._raised.clear()
        self._dtypes.clear()
        self._copies.clear()

    def _copy(self, original: Tensor) -> Tensor:
        key, dtype = _storage_key(original), _UP.get(original.dtype, original.dtype)
        if key is None:
            return original.to(dtype, copy=True)
        if key not in self._copies:
            whole = original.as_strided((original.untyped_storage().nbytes() // original.element_size(),), (1,), 0)
            self._copies[key] = original.untyped_storage(), whole.to(dtype, copy=True)
        return self._copies[key][1].as_strided(original.size(), original.stride(), original.storage_offset())

    def _makes_copy(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a cast that now does nothing makes another tensor in the program: under no_grad, a cut."""
        own = self._dtypes.get(id(args[0]), self._default)
        wanted = {value for value in (*args[1:], *kwargs.values()) if isinstance(value, torch.dtype)}
        return args[0].dtype in _HIGH and not args[0].is_complex() and bool(wanted & _UP.keys()) and own not in wanted

    def _is_high(self, value: Any) -> bool:
        if not isinstance(value, Tensor):
            return isinstance(value, float)  # which may come from .item()
        return value.dtype in _HIGH or (value.dtype in _UP and _storage_key(value) in self._copies)

    def _lifted(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype not in _UP:
            return value
        if self._copies and _storage_key(value) in self._copies and not value.requires_grad:
            self.raise_(value)
            return value
        return value.to(_UP[value.dtype])

    def _raise_written(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        written = tree_leaves(args[:1]) if is_in_place(func) else []
        for tensor in [*written, *tree_leaves(kwargs.get("out"))]:
            if isinstance(tensor, Tensor):
                if tensor._base is not None:
                    self.raise_(tensor._base)
                self.raise_(tensor)

    # --- what the mode does not see

    def _enter_module(self, module: nn.Module, inputs: Any) -> Any:
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                self.raise_(tensor)
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):  # they compare their input's dtype with their weights'
            return tree_map(self._lifted, inputs)
        return None

    def _before_step(self, optimizer: Optimizer, _: Any, __: Any) -> None:
        for state in optimizer.state.values():
            for name, value in state.items():
                if isinstance(value, Tensor) and name != "step":
                    self.raise_(value)

    def _wrap_engine(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if any(mode is self for mode in _get_current_function_mode_stack()):
                return original(*args, **kwargs)
            with self:  # called through a method of a tensor, torch has set this mode aside
                return original(*args, **kwargs)

        return run

    def _wrap_from_numpy(self, original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda array: self._lifted(original(array))


@contextmanager
def in_double() -> Iterator[DoublePrecision]:
    """Run what is inside in float64: the default dtype, modules that are called, optimizers' states, no autocast.

    On exit every tensor that was raised is what it was, also after an exception. Lower-precision inputs stay as they
    are, and are cast where they meet float64. Gradient scalers do nothing, and compiled regions run eager.
    """
    mode, default = DoublePrecision(), torch.get_default_dtype()
    with ExitStack() as stack:
        stack.callback(mode.lower)
        stack.callback(torch.set_default_dtype, default)
        torch.set_default_dtype(torch.float64)
        for handle in (
            register_module_forward_pre_hook(mode._enter_module),
            register_optimizer_step_pre_hook(mode._before_step),
        ):
            stack.callback(handle.remove)
        for owner, name, wrap in (
            (torch.autograd, "_engine_run_backward", mode._wrap_engine),
            (torch, "from_numpy", mode._wrap_from_numpy),
            (torch, "set_default_dtype", _wrap_default),
            (torch, "set_default_tensor_type", _wrap_default),
            (torch.amp.autocast, "__enter__", _wrap_autocast),
            (torch.amp.GradScaler, "scale", lambda _: lambda scaler, outputs: outputs),
            (torch.amp.GradScaler, "unscale_", lambda _: lambda scaler, optimizer: None),
            (torch.amp.GradScaler, "step", lambda _: _step_unscaled),
            (torch.amp.GradScaler, "update", lambda _: lambda scaler, new_scale=None: None),
        ):
            stack.enter_context(wrapped(owner, name, wrap))
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(mode)
        yield mode


def _wrap_default(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda value: original(_double_name(_double_dtype(value)))


def _wrap_autocast(original: Callable[..., Any]) -> Callable[..., Any]:
    def enter(context: Any) -> Any:
        enabled, context._enabled = context._enabled, False
        try:
            return original(context)
        finally:
            context._enabled = enabled

    return enter


def _step_unscaled(scaler: Any, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
    return optimizer.step(*args, **kwargs)


def _double_dtype(value: Any) -> Any:
    return _UP.get(value, value) if isinstance(value, torch.dtype) else value


def _double_name(kind: Any) -> Any:
    """``torch.DoubleTensor`` for a legacy tensor type of lower precision, given as a class or by name."""
    text = f"{kind.__module__}.{kind.__name__}" if isinstance(kind, type) else kind
    if isinstance(text, str) and text.endswith(_LOW_NAMES):
        return f"{text.rpartition('.')[0]}.DoubleTensor"
    return kind


def _storage_key(tensor: Tensor) -> tuple[int, torch.dtype] | None:
    try:
        return tensor.untyped_storage()._cdata, tensor.dtype
    except (NotImplementedError, RuntimeError):  # sparse tensors, torch.func's wrappers
        return None


def _is_shell(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether this makes the empty tensor into which torch's unpickling puts a storage of that dtype."""
    return func is torch.empty and args[:1] in (((0,),), (0,))
