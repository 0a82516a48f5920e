"""Watch every storage of a step come and go, below autograd, on real or on fake tensors."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from frostline.tracing.log import Allocation, AllocationLog, Kind, Phase
from frostline.where import user_line

_NO_WORK = (torch.ops.prim.device.default, torch.ops.aten.detach.default)
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


class MemTrace(TorchDispatchMode):
    """Write an allocation log of all that runs inside.

    Enter it after a fake tensor mode, not before. Parameters, gradients, buffers, optimizer state and inputs
    are registered on entry; any other storage that an operator reads before one made it was there before too.
    Gradients through `torch.func` cannot be traced: torch raises there while any saved-tensor hook is set.

    Args:
        model: Its submodules give allocations their place.
        optimizers: Their parameters and state are recognised; another one's state is once it steps.
        inputs: Any pytree of tensors the step is given.

    Attributes:
        log: What was seen.
    """

    def __init__(self, model: nn.Module, optimizers: Iterable[torch.optim.Optimizer] = (), inputs: object = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.log = AllocationLog()
        self._model, self._optimizers, self._inputs = model, tuple(optimizers), inputs
        self._names = {id(module): name or type(model).__name__ for name, module in model.named_modules()}
        self._modules: list[str] = []
        self._optimizer_steps = False
        self._alive: dict[int, tuple[int, weakref.ref[torch.UntypedStorage]]] = {}
        self._cleanup = ExitStack()

    def begin_step(self) -> None:
        """What follows is the step that counts; what went before was warm-up."""
        self.log.step_start, self.log.num_ops = len(self.log.events), 0

    def __enter__(self) -> MemTrace:
        """Register what is there and start to listen."""
        with ExitStack() as stack:
            stack.callback(self._alive.clear)
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
        if func in _NO_WORK:
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
        for tensor in _tensors((args, kwargs)):
            self._see(tensor, func, before=before)
        out = func(*args, **kwargs)
        for tensor in _tensors(out):
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
            module=self._modules[-1] if self._modules else "",
            line=user_line(),
        )
        log.allocations.append(allocation)
        if before:
            allocation.kind = "parameters" if isinstance(tensor, nn.Parameter) else "inputs"
            log.resident[number] = num_bytes
        else:
            log.events.append((number, num_bytes))
        self._alive[key] = number, weakref.ref(storage, partial(self._release, key))
        return allocation

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
        parameters += [parameter for optimizer in self._optimizers for parameter in _parameters(optimizer)]
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
        if self._optimizer_steps:
            return "optimizer"
        return "forward" if torch._C._current_graph_task_id() == -1 else "backward"

    def _enter_module(self, module: nn.Module, _: object) -> None:
        if id(module) in self._names:
            self._modules.append(self._names[id(module)])

    def _leave_module(self, module: nn.Module, _: object, __: object) -> None:
        if id(module) in self._names:
            self._modules.pop()

    def _after_gradient(self, parameter: Tensor) -> None:
        self._classify(parameter.grad, "gradients")

    def _before_optimizer(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self._classify([parameter.grad for parameter in _parameters(optimizer)], "gradients")
        self._optimizer_steps = True

    def _after_optimizer(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self._optimizer_steps = False
        self._classify(list(optimizer.state.values()), "optimizer state")

    def _pack(self, tensor: Tensor) -> tuple[Tensor, int]:
        for allocation in self._see(tensor, None, before=True):
            allocation.saved = True
        # An operator's own output, kept as it is, would keep its graph alive in a reference cycle.
        return tensor.detach(), tensor._version


def _unpack(packed: tuple[Tensor, int]) -> Tensor:
    # Any saved-tensor hook switches autograd's own check for later in-place changes off.
    tensor, version = packed
    if tensor._version != version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: "
            f"[{tensor.type()} {list(tensor.shape)}] is at version {tensor._version}; "
            f"expected version {version} instead"
        )
    return tensor


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from _tensors(item)
    elif isinstance(tree, dict):
        yield from _tensors(list(tree.values()))


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _is_composite(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), _COMPOSITE)


def _name(func: Callable[..., Any] | None) -> str:
    if isinstance(func, torch._ops.OpOverload):
        return str(func.overloadpacket)
    return "" if func is None else str(func)
