"""Watch what a training program does around its tensors: optimizers, scalers, clearing, clipping, freezing."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol
from weakref import ref

import torch
from torch import Tensor, nn
from torch.autograd import anomaly_mode
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.utils import clip_grad
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from frostline.patches import wrapped
from frostline.tracing.flow import FlowTrace
from frostline.tracing.values import fingerprint, gradient_state, tensors_in
from frostline.where import Line, is_library, user_place

GradientState = Literal["none", "zero", "finite", "nonfinite", "unread"]
_FREEZING_NAMES = ("requires_grad", "require_grad", "requires_grads", "require_grads", "trainable")


@dataclass(slots=True, eq=False)
class OptimizerUse:
    """An optimizer and how it was used.

    Attributes:
        optimizer: The optimizer.
        made_at: The user's line that made it; None where it was there before.
        steps_at: The user's line that steps it.
        num_updates: Its steps, skipped ones included.
        unscaled: Whether its gradients have been unscaled since the scaler's last update.
        scaled: Whether a scaler steps it.
    """

    optimizer: Optimizer
    made_at: Line | None = None
    steps_at: Line | None = None
    num_updates: int = 0
    unscaled: bool = False
    scaled: bool = False


@dataclass(slots=True, eq=False)
class Update:
    """One `step()` of an optimizer, or one that a scaler skipped.

    Attributes:
        use: The optimizer.
        line: The user's line.
        skipped: Whether a scaler skipped it.
        gradients: By number of a leaf: its gradient, as the optimizer found it.
        moved: By number of a leaf: whether its value changed; missing where values cannot be read.
        has_closure: Whether the optimizer went forward and backward itself; the gradients are the last ones.
        rates: The learning rates of the groups.
    """

    use: OptimizerUse
    line: Line | None
    skipped: bool = False
    gradients: dict[int, GradientState] = field(default_factory=dict)
    moved: dict[int, bool] = field(default_factory=dict)
    has_closure: bool = False
    rates: tuple[float, ...] = ()


class ProcedureListener(Protocol):
    """Who is told what the program does."""

    def updated(self, update: Update) -> None:
        """An optimizer has stepped, or was skipped."""
        ...

    def cleared(self, parameters: list[Tensor], line: Line | None, to_none: bool) -> None:
        """Gradients are about to be cleared."""
        ...

    def clipped(self, gradients: list[Tensor], line: Line | None) -> None:
        """Gradients have been clipped."""
        ...

    def scaler_updated(self, scaler: int, line: Line | None) -> None:
        """A gradient scaler has chosen its next scale."""
        ...


class ProcedureTrace:
    """Listens to optimizers, gradient scalers, `zero_grad`, clipping and freezing.

    Args:
        listener: Told of each.
        flow: Paused while an optimizer steps; it numbers the parameters.

    Attributes:
        optimizers: By id.
        made_at: By id of a parameter: the parameter, while it lives, and the line that registered it.
        attributes: By id of a module: attributes set on it that look like freezing, and their lines.
        collected: How often each line emptied a cache or collected garbage.
        anomaly_at: The line that switched anomaly detection on.
        defaults: Lines that changed the default dtype or device, and to what.
    """

    def __init__(self, listener: ProcedureListener, flow: FlowTrace) -> None:
        self._listener, self._flow = listener, flow
        self.optimizers: dict[int, OptimizerUse] = {}
        self.made_at: dict[int, tuple[ref[Tensor], Line | None]] = {}
        self.attributes: dict[int, tuple[nn.Module, str, Line | None]] = {}
        self.collected: Counter[tuple[str, Line]] = Counter()
        self.defaults: dict[str, Line] = {}
        self.anomaly_at: Line | None = None
        self._unscaled_by: dict[int, int] = {}
        self._stepping: list[Optimizer] = []
        self._inner: set[int] = set()
        self._modes: dict[int, tuple[nn.Module, Line | None]] = {}
        self._before: dict[int, dict[int, int | None]] = {}
        self._gradients: dict[int, dict[int, GradientState]] = {}

    @contextmanager
    def installed(self) -> Iterator[ProcedureTrace]:
        """Listen inside the block."""
        with ExitStack() as stack:
            for handle in (
                register_optimizer_step_pre_hook(self._before_step),
                register_optimizer_step_post_hook(self._after_step),
                register_module_parameter_registration_hook(self._registered),
            ):
                stack.callback(handle.remove)
            scaler = torch.amp.GradScaler
            for owner, name, wrap in (
                (Optimizer, "__init__", self._wrap_making),
                (Optimizer, "zero_grad", self._wrap_clearing),
                (nn.Module, "zero_grad", self._wrap_clearing),
                (nn.Module, "__setattr__", self._wrap_attribute),
                (nn.Module, "train", self._wrap_training),
                (scaler, "scale", self._wrap_scaling),
                (scaler, "unscale_", self._wrap_unscaling),
                (scaler, "step", self._wrap_scaled_step),
                (scaler, "update", self._wrap_scaler_update),
                (clip_grad, "_group_tensors_by_device_and_dtype", self._wrap_clipping),
                (anomaly_mode.set_detect_anomaly, "__init__", self._wrap_anomaly),
                (anomaly_mode.detect_anomaly, "__init__", self._wrap_anomaly),
                (gc, "collect", self._wrap_collecting("gc.collect()")),
                (torch.cuda, "empty_cache", self._wrap_collecting("torch.cuda.empty_cache()")),
                (torch, "set_default_dtype", self._wrap_default),
                (torch, "set_default_device", self._wrap_default),
                (torch, "set_default_tensor_type", self._wrap_default),
            ):
                stack.enter_context(wrapped(owner, name, wrap))
            yield self

    def use_of(self, optimizer: Optimizer, made_at: Line | None = None) -> OptimizerUse:
        """The record of an optimizer, new or known."""
        return self.optimizers.setdefault(id(optimizer), OptimizerUse(optimizer, made_at))

    def know(self, optimizer: Optimizer, made_at: Line | None = None) -> None:
        """Take up an optimizer before it steps, and number its parameters."""
        self.use_of(optimizer, made_at)
        self._numbered(optimizer)

    # --- optimizers

    def _wrap_making(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def made(optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
            result = original(optimizer, *args, **kwargs)
            self.know(optimizer, user_place(2))
            return result

        return made

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        has_closure = any(callable(arg) for arg in (*args[1:], *kwargs.values()))
        self._flow.paused = True
        self._stepping.append(optimizer)
        self.use_of(optimizer)  # known before its closure moves what it holds
        numbered = self._numbered(optimizer)
        self._before[id(optimizer)] = {number: fingerprint(tensor) for number, tensor in numbered}
        if not has_closure:
            self._gradients[id(optimizer)] = {number: gradient_state(tensor) for number, tensor in numbered}
        self._flow.paused = self._flow.is_stepping = not has_closure  # a closure goes forward and backward

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        numbered = self._numbered(optimizer)
        self._flow.paused = True
        gradients = self._gradients.pop(id(optimizer), None)
        has_closure = gradients is None
        if gradients is None:
            gradients = {number: gradient_state(tensor) for number, tensor in numbered}
        before = self._before.pop(id(optimizer), {})
        moved = {n: before[n] != fingerprint(t) for n, t in numbered if before.get(n) is not None}
        self._flow.paused = self._flow.is_stepping = False
        if self._passes_on(optimizer):
            self.use_of(optimizer).num_updates += 1
            return
        update = Update(
            self.use_of(optimizer), user_place(2), gradients=gradients, moved=moved, has_closure=has_closure
        )
        self._finish(update)

    def _passes_on(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer's step was that of another inside it, as lookahead's and sharpness-aware ones are."""
        del self._stepping[self._stepping.index(optimizer) :]
        if self._stepping:
            self._inner.add(id(self._stepping[-1]))
        return id(optimizer) in self._inner

    def _finish(self, update: Update) -> None:
        update.use.num_updates += 1
        update.use.steps_at = update.line
        update.rates = tuple(float(group["lr"]) for group in update.use.optimizer.param_groups if "lr" in group)
        self._listener.updated(update)

    def _numbered(self, optimizer: Optimizer) -> list[tuple[int, Tensor]]:
        tensors = [tensor for group in optimizer.param_groups for tensor in group["params"]]
        numbered = [(self._flow.leaves.add(tensor), tensor) for tensor in tensors]
        for number, _ in numbered:
            self._flow.leaves.all[number].is_held = True
        return numbered

    # --- gradient scalers

    def _wrap_scaling(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def scale(scaler: Any, outputs: Any) -> Any:
            result = original(scaler, outputs)
            if scaler.is_enabled():
                made = (self._flow.source(tensor).event for tensor in tensors_in((result,)))
                self._flow.scaled_losses |= {event for event in made if event is not None}
            return result

        return scale

    def _wrap_unscaling(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def unscale_(scaler: Any, optimizer: Optimizer) -> Any:
            result = original(scaler, optimizer)
            self.use_of(optimizer).unscaled = True
            self._unscaled_by[id(optimizer)] = id(scaler)
            return result

        return unscale_

    def _wrap_scaled_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(scaler: Any, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
            use = self.use_of(optimizer)
            use.scaled = bool(scaler.is_enabled())
            num_before = use.num_updates
            result = original(scaler, optimizer, *args, **kwargs)
            if use.scaled and use.num_updates == num_before:
                gradients = {number: gradient_state(tensor) for number, tensor in self._numbered(optimizer)}
                self._finish(Update(use, user_place(2), skipped=True, gradients=gradients))
            return result

        return step

    def _wrap_scaler_update(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def update(scaler: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(scaler, *args, **kwargs)
            if scaler.is_enabled():
                for key, use in self.optimizers.items():
                    if self._unscaled_by.get(key) == id(scaler):
                        use.unscaled = False
                self._listener.scaler_updated(id(scaler), user_place(2))
            return result

        return update

    # --- gradients

    def _wrap_clearing(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def zero_grad(owner: Any, set_to_none: bool = True) -> Any:
            groups = owner.param_groups if isinstance(owner, Optimizer) else [{"params": owner.parameters()}]
            tensors = [tensor for group in groups for tensor in group["params"]]
            self._listener.cleared(tensors, user_place(2), set_to_none)
            paused, self._flow.paused = self._flow.paused, True
            try:
                return original(owner, set_to_none)
            finally:
                self._flow.paused = paused

        return zero_grad

    def _wrap_clipping(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def group(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            if sys._getframe(1).f_code.co_name in ("_clip_grads_with_norm_", "clip_grad_value_"):
                self._listener.clipped(list(tensors[0]), user_place(2))
            return original(tensors, *args, **kwargs)

        return group

    # --- the rest

    def _registered(self, _: nn.Module, __: str, parameter: Any) -> None:
        if isinstance(parameter, Tensor):
            self.made_at[id(parameter)] = ref(parameter), user_place(2)

    def _wrap_attribute(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def set_attribute(module: nn.Module, name: str, value: Any) -> None:
            if name in _FREEZING_NAMES and isinstance(value, bool):
                self.attributes[id(module)] = module, name, user_place(2)
            original(module, name, value)

        return set_attribute

    def _wrap_training(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def train(module: nn.Module, mode: bool = True) -> Any:
            if mode:
                self._modes[id(module)] = module, _mode_line()
            return original(module, mode)

        return train

    def mode_line(self, module: nn.Module) -> Line | None:
        """The user's line that put a module in training mode last; None where none was seen."""
        known = self._modes.get(id(module))
        return known[1] if known else None

    def _wrap_collecting(self, what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
            def collect(*args: Any, **kwargs: Any) -> Any:
                line = user_place(2)
                if line is not None and not _called_by_library():
                    self.collected[what, line] += 1
                return original(*args, **kwargs)

            return collect

        return wrap

    def _wrap_anomaly(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def detect(*args: Any, **kwargs: Any) -> Any:
            self.anomaly_at = user_place(2) or self.anomaly_at
            return original(*args, **kwargs)

        return detect

    def _wrap_default(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def set_default(value: Any) -> Any:
            line = user_place(2)
            if line is not None and not _called_by_library():
                self.defaults[str(value)] = line
            return original(value)

        return set_default


def _mode_line() -> Line | None:
    """The user's line that called `.train()`, looking through methods of that name that pass the call on."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        passes_on = code.co_name == "train" and isinstance(frame.f_locals.get("self"), nn.Module)
        if not is_library(code.co_filename) and not passes_on:
            return Line(code.co_filename, frame.f_lineno, code.co_name)
        frame = frame.f_back
    return None


def _called_by_library() -> bool:
    return is_library(sys._getframe(2).f_code.co_filename)
