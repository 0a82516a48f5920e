"""Watch every storage of a step come and go, below autograd, on real or on fake tensors."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from frostline.tracing.log import Allocation, AllocationLog, Kind, Phase, SavedBy
from frostline.tracing.versions import refuse_changed
from frostline.where import user_line

_NO_WORK = (torch.ops.prim.device.default, torch.ops.aten.detach.default)
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_PACKAGE = str(Path(__file__).parents[1])


class MemTrace(TorchDispatchMode):
    """Write an allocation log of all that runs inside.

    Enter it after a fake tensor mode, not before. Parameters, gradients, buffers, optimizer state and inputs
    are registered on entry; any other storage that an operator reads before one made it was there before too.
    Gradients through `torch.func` cannot be traced: torch raises there while any saved-tensor hook is set.

    Args:
        model: Its submodules give allocations their place.
        optimizers: Their parameters and state are recognised; another one's state is once it steps.
        inputs: Any pytree of tensors the step is given.
        stacks: Keep the whole stack of every allocation.

    Attributes:
        log: What was seen.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Iterable[torch.optim.Optimizer] = (),
        inputs: object = (),
        *,
        stacks: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.log = AllocationLog()
        self._model, self._optimizers, self._inputs = model, tuple(optimizers), inputs
        self._stacks: dict[tuple[Any, ...], tuple[tuple[str, int, str], ...]] | None = {} if stacks else None
        self._names: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
        for name, module in model.named_modules():
            self._names[module] = name or type(model).__name__
        self._running: list[tuple[nn.Module, str]] = []
        self._trainable: dict[nn.Module, bool | None] = {}  # while one root module runs
        self._optimizer_task: int | None = None  # the backward an optimizer steps in, -1 outside; None: it does not
        self._home = os.getpid(), threading.get_ident()
        self._alive: dict[int, tuple[int, weakref.ref[torch.UntypedStorage]]] = {}
        self._cleanup = ExitStack()

    def begin_step(self) -> None:
        """What follows is the step that counts; what went before was warm-up."""
        self.log.step_start, self.log.num_ops = len(self.log.events), 0

    def __enter__(self) -> MemTrace:
        """Register what is there and start to listen."""
        with ExitStack() as stack:
            stack.callback(self._alive.clear)
            stack.callback(self._trainable.clear)
            stack.callback(self._running.clear)
            self._home = os.getpid(), threading.get_ident()
            self._register(stack)
            handles = [
                # Global hooks: a hook on a TransformerEncoder itself would switch its fused path off.
                register_module_forward_pre_hook(self._enter_module),
                register_module_forward_hook(self._leave_module, always_call=True),
                register_optimizer_step_pre_hook(self._before_optimizer),
                register_optimizer_step_post_hook(self._after_optimizer),
            ]
            for handle in handles:
                stack.callback(handle.remove)
            stack.enter_context(saved_tensors_hooks(self._pack, _unpack))
            super().__enter__()  # type: ignore[no-untyped-call]
            self._cleanup = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        """Stop listening and take every hook away."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._cleanup.close()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operator and log the storages it met and made."""
        kwargs = kwargs or {}
        if func in _NO_WORK or os.getpid() != self._home[0]:  # a forked loader process is not the step
            return func(*args, **kwargs)
        if torch.is_inference_mode_enabled() and _is_composite(func):  # it arrives whole there: look inside
            super().__enter__()  # type: ignore[no-untyped-call]
            try:
                return func._op_dk(_COMPOSITE, *args, **kwargs)
            finally:
                super().__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self.log.num_ops += 1
        # `torch.tensor` and `from_numpy` allocate out of sight and hand the new storage to lift_fresh.
        before = func is not torch.ops.aten.lift_fresh.default
        for tensor in tensors_in((args, kwargs)):
            self._see(tensor, func, before=before)
        out = func(*args, **kwargs)
        for tensor in tensors_in(out):
            self._see(tensor, func, before=False)
        return out

    def _see(self, tensor: Tensor, func: Any, *, before: bool) -> list[Allocation]:
        return [self._see_storage(storage, tensor, func, before) for storage in self._storages(tensor)]

    def _see_storage(self, storage: torch.UntypedStorage, tensor: Tensor, func: Any, before: bool) -> Allocation:
        log, key, num_bytes = self.log, storage._cdata, storage.nbytes()
        if key in self._alive:
            number = self._alive[key][0]
            allocation = log.allocations[number]
            if num_bytes != allocation.num_bytes:
                log.events.append((number, num_bytes - allocation.num_bytes))
                allocation.num_bytes = num_bytes
            return allocation
        number = len(log.allocations)
        allocation = Allocation(
            num_bytes=num_bytes,
            device=tensor.device.type,
            op=_name(func),
            shape=tuple(tensor.shape),
            phase=self._phase(),
            module=self._running[-1][1] if self._running else "",
            line=sys.intern(user_line()),
            stack=() if self._stacks is None else _stack(self._stacks),
        )
        log.allocations.append(allocation)
        if before:
            allocation.kind = "parameters" if isinstance(tensor, nn.Parameter) else "inputs"
            self._arrive(number, allocation)
        else:
            log.events.append((number, num_bytes))
        self._alive[key] = number, weakref.ref(storage, partial(self._release, key))
        return allocation

    def _arrive(self, number: int, allocation: Allocation) -> None:
        """A storage that no operator made is met for the first time: it was there before the trace."""
        allocation.line, allocation.module, allocation.stack = "", "", ()
        self.log.resident[number] = allocation.num_bytes

    def _release(self, key: int, _: object) -> None:
        number, _ = self._alive.pop(key)
        self.log.events.append((number, -self.log.allocations[number].num_bytes))

    def _storages(self, tensor: Any) -> Iterator[torch.UntypedStorage]:
        if is_traceable_wrapper_subclass(tensor):
            for name in tensor.__tensor_flatten__()[0]:
                yield from self._storages(getattr(tensor, name))
            return
        try:
            yield tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):
            self.log.not_seen.add(f"{tensor.layout} tensors")

    def _classify(self, tree: object, kind: Kind) -> None:
        for tensor in tree_leaves(tree):
            if isinstance(tensor, Tensor):
                for allocation in self._see(tensor, None, before=True):
                    if allocation.kind in ("step", "inputs"):
                        allocation.kind = kind

    def _register(self, stack: ExitStack) -> None:
        parameters = list(self._model.parameters())
        parameters += [parameter for optimizer in self._optimizers for parameter in parameters_of(optimizer)]
        self._classify(parameters, "parameters")
        self._classify(list(self._model.buffers()), "buffers")
        self._classify([parameter.grad for parameter in parameters], "gradients")
        for optimizer in self._optimizers:
            self._classify(list(optimizer.state.values()), "optimizer state")
        self._classify(self._inputs, "inputs")
        for parameter in dict.fromkeys(parameters):
            if parameter.requires_grad:
                handle = parameter.register_post_accumulate_grad_hook(self._after_gradient)
                stack.callback(handle.remove)

    def _phase(self) -> Phase:
        task = torch._C._current_graph_task_id()
        # A step may run forward and backward itself (LBFGS), and backward may step an optimizer.
        if self._optimizer_task == task and not self._running:
            return "optimizer"
        return "forward" if task == -1 else "backward"

    def _elsewhere(self) -> bool:
        """Whether this is another process or thread than the step's; autograd's own threads belong to it."""
        process, thread = self._home
        if os.getpid() != process:
            return True
        return threading.get_ident() != thread and torch._C._current_graph_task_id() == -1

    def _enter_module(self, module: nn.Module, _: object) -> None:
        if module in self._names and not self._elsewhere():
            self._running.append((module, self._names[module]))

    def _leave_module(self, module: nn.Module, _: object, __: object) -> None:
        if self._running and self._running[-1][0] is module and not self._elsewhere():
            self._running.pop()
            if not self._running:
                self._trainable.clear()

    def _saver(self) -> SavedBy:
        """Who keeps what is packed now: the innermost running module with parameters says whether it trains."""
        for module, _ in reversed(self._running):
            if module not in self._trainable:
                flags = [parameter.requires_grad for parameter in module.parameters()]
                self._trainable[module] = any(flags) if flags else None
            trainable = self._trainable[module]
            if trainable is not None:
                return "trainable" if trainable else "frozen"
        return "trainable"

    def _after_gradient(self, parameter: Tensor) -> None:
        self._classify(parameter.grad, "gradients")

    def _before_optimizer(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self._classify([parameter.grad for parameter in parameters_of(optimizer)], "gradients")
        self._optimizer_task = torch._C._current_graph_task_id()

    def _after_optimizer(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self._optimizer_task = None
        self._classify(list(optimizer.state.values()), "optimizer state")

    def _pack(self, tensor: Tensor) -> tuple[Tensor, int]:
        saver = self._saver()
        for allocation in self._see(tensor, None, before=True):
            if allocation.saved_by != "trainable":
                allocation.saved_by = saver
        # An operator's own output, kept as it is, would keep its graph alive in a reference cycle.
        return tensor.detach(), tensor._version


def _unpack(packed: tuple[Tensor, int]) -> Tensor:
    tensor, version = packed
    refuse_changed(tensor, version, tensor.shape)
    return tensor


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from tensors_in(item)
    elif isinstance(tree, dict):
        yield from tensors_in(list(tree.values()))


def _stack(known: dict[tuple[Any, ...], tuple[tuple[str, int, str], ...]]) -> tuple[tuple[str, int, str], ...]:
    """Every frame that is not our own, the innermost first; equal stacks are one object."""
    frames: list[tuple[Any, int]] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if not frame.f_code.co_filename.startswith(_PACKAGE):
            frames.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    key = tuple(frames)
    if key not in known:
        known[key] = tuple((code.co_filename, line, code.co_name) for code, line in frames)
    return known[key]


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """What an optimizer steps."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _is_composite(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), _COMPOSITE)


def _name(func: Callable[..., Any] | None) -> str:
    if isinstance(func, torch._ops.OpOverload):
        return str(func.overloadpacket)
    return "" if func is None else str(func)
