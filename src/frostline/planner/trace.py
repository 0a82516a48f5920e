"""One step under the planner's eyes: its allocation log, where in it each unit ran, and how much work it did."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from frostline.memory import Workload
from frostline.tracing import FakeTensors, MemTrace
from frostline.tracing.memtrace import tensors_in

MarkKind = Literal["forward", "returned", "backward", "optimizer"]
WORK_PER_ELEMENT = 16
"""An operator waits for memory, not for arithmetic: each element it writes counts as so many operations."""


@dataclass(frozen=True)
class Mark:
    """A moment of the step.

    Attributes:
        kind: A unit's forward begins, it has returned, its output's gradient has arrived, an optimizer begins.
        unit: Its place among the units; -1 for an optimizer.
        call: Which call of the unit it belongs to.
        event: How many events of the log lie before it.
        work: Work done before it.
    """

    kind: MarkKind
    unit: int
    call: int
    event: int
    work: int


class TwinTensors(FakeTensors):
    """Fake tensors for a step on a real model: nothing real is changed, and nothing is computed.

    Each real tensor that an operator meets is read through one fake twin, kept as long as the tensor. So the model
    and whatever else the step refers to stay as they are.
    """

    def __init__(self) -> None:
        super().__init__()
        self._twins: dict[int, tuple[Tensor, weakref.ref[Tensor]]] = {}
        self._originals: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator on shapes alone."""
        for tensor in tensors_in((args, kwargs or {})):
            if id(tensor) not in self._twins and not self.is_our_fake(tensor):
                self._adopt(tensor)
        return super().__torch_dispatch__(func, types, args, kwargs)

    def original(self, storage: torch.UntypedStorage) -> torch.UntypedStorage:
        """The real storage that a twin's stands for, or the storage itself."""
        reference = self._originals.get(storage._cdata)
        return (reference() if reference is not None else None) or storage

    def _adopt(self, tensor: Tensor) -> None:
        try:
            twin = self.from_tensor(tensor)
            fake, real = twin.untyped_storage(), tensor.untyped_storage()
        except (NotImplementedError, RuntimeError, AssertionError):  # the mode itself says what it cannot do
            return
        self._originals[fake._cdata] = weakref.ref(real)
        self._twins[id(tensor)] = twin, weakref.ref(tensor, partial(self._forget, id(tensor), fake._cdata))

    def _forget(self, number: int, storage: int, _: object) -> None:
        self._twins.pop(number, None)
        self._originals.pop(storage, None)


class StepTrace(MemTrace):
    """The allocation log of a step, with marks and with the work it does.

    Args:
        workload: Whose step will run inside.
        units: The modules to mark, by name.
        twins: The fake mode around it, where the model is real.

    Attributes:
        marks: In the order of the step.
        work: Floating-point operations of products and convolutions, and `WORK_PER_ELEMENT` for each element written.
    """

    def __init__(
        self, workload: Workload, units: Mapping[str, nn.Module], twins: TwinTensors | None, *, stacks: bool = False
    ) -> None:
        super().__init__(workload.model, workload.optimizers, workload.inputs, stacks=stacks)
        self.marks: list[Mark] = []
        self.work = 0
        self._twins = twins
        self._units = {module: number for number, module in enumerate(units.values())}
        self._calls: dict[int, int] = {}
        self._marking = ExitStack()

    def __enter__(self) -> StepTrace:
        """Register what is there and start to listen."""
        with ExitStack() as stack:
            # Global hooks, as the log's own: a hook on a module itself may switch a fused path off.
            for handle in (
                register_module_forward_pre_hook(self._begins),
                register_module_forward_hook(self._returned),
                register_optimizer_step_pre_hook(self._steps),
            ):
                stack.callback(handle.remove)
            super().__enter__()
            self._marking = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        """Stop listening and take every hook away."""
        self._marking.close()
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Run one operator, log its storages and count its work."""
        out = super().__torch_dispatch__(func, types, args, kwargs)
        self.work += _work(func, args, kwargs or {}, out)
        return out

    def _storages(self, tensor: Any) -> Iterator[torch.UntypedStorage]:
        for storage in super()._storages(tensor):
            yield storage if self._twins is None else self._twins.original(storage)

    def _mark(self, kind: MarkKind, unit: int, call: int) -> None:
        self.marks.append(Mark(kind, unit, call, len(self.log.events), self.work))

    def _begins(self, module: nn.Module, _: object) -> None:
        unit = self._units.get(module)
        if unit is not None and not _in_backward():
            self._calls[unit] = self._calls.get(unit, -1) + 1
            self._mark("forward", unit, self._calls[unit])

    def _returned(self, module: nn.Module, _: object, output: Any) -> None:
        unit = self._units.get(module)
        if unit is None or _in_backward():
            return
        call = self._calls[unit]
        self._mark("returned", unit, call)
        arrived = _once(partial(self._mark, "backward", unit, call))
        for tensor in _tensors_of(output):
            if tensor.requires_grad:
                tensor.register_hook(arrived)

    def _steps(self, *_: object) -> None:
        self._mark("optimizer", -1, 0)


def _in_backward() -> bool:
    """Whether this is a recomputation."""
    return torch._C._current_graph_task_id() != -1


def _once(note: Callable[[], None]) -> Callable[[Tensor], None]:
    called: list[bool] = []

    def hook(_: Tensor) -> None:
        if not called:
            called.append(True)
            note()

    return hook


def _tensors_of(output: Any) -> list[Tensor]:
    """The tensors that a module returned; those of an output object of its own are its attributes."""
    leaves = tree_leaves(output)
    inner = [value for leaf in leaves if hasattr(leaf, "__dict__") and not isinstance(leaf, Tensor)
             for value in vars(leaf).values()]  # fmt: skip
    return [value for value in (*leaves, *inner) if isinstance(value, Tensor)]


_ATTENTION = flop_registry[torch.ops.aten._scaled_dot_product_flash_attention]
_FORMULAS = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _ATTENTION,
    # Five products instead of two.
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda gradient, q, k, v, *_, **__: _ATTENTION(q, k, v, out_val=None) * 5 // 2
    ),
}


def _work(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    if not isinstance(func, torch._ops.OpOverload) or func.is_view:
        return 0
    written = sum(tensor.numel() for tensor in tensors_in(out))
    formula = _FORMULAS.get(func.overloadpacket)
    return (formula(*args, **kwargs, out_val=out) if formula else 0) + WORK_PER_ELEMENT * written
