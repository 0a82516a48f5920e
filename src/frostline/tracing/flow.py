"""Watch, above autograd, what a step's values depend on and what autograd can get to from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Protocol
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.module import (
    _global_forward_hooks_with_kwargs,
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from frostline.patches import unwarned, wrapped
from frostline.tracing.backward import BackwardWatch
from frostline.tracing.event import Backward, Event, EventKind, Source
from frostline.tracing.grad_switch import GradSwitches, reentrant_context
from frostline.tracing.leaves import Leaf, Leaves, is_recomputing
from frostline.tracing.marks import Marks, storage_key
from frostline.tracing.module_use import ModuleUses
from frostline.tracing.notes import Notes
from frostline.tracing.operators import (
    CLIPS,
    DATA_SET,
    ESCAPES,
    GRAD_GET,
    GRAD_SET,
    HOOKS,
    READ_ONLY,
    REQUIRES_GRAD,
    SCALES,
    SHAPE_ONLY,
    draws_random_numbers,
    event_kind,
    factor_of,
    is_in_place,
    is_over_one_element,
    is_sum,
    is_update,
    name_of,
    running_statistics,
)
from frostline.tracing.stack import apply_line, checkpoint_line, is_called_by_torch, locate
from frostline.tracing.values import is_transformed, tensors_in
from frostline.where import Line

_NOTHING = Source(None, 0, 0, -1)


class Listener(Protocol):
    """Who is told, while a step runs, where it is."""

    def began_forward(self, module: nn.Module) -> None:
        """A module is called, with no other module running."""
        ...

    def began_backward(self, backward: Backward, root: Tensor | None) -> None:
        """Autograd is about to go backward."""
        ...

    def ended_backward(self, backward: Backward) -> None:
        """It has, or it has raised."""
        ...

    def wrote(self, number: int, line: Line | None) -> None:
        """The program, and no optimizer, wrote to a leaf."""
        ...

    def clipped(self, gradients: list[Tensor], line: Line | None) -> None:
        """Tensors, which may be gradients, were clamped in place."""
        ...


class FlowTrace(TorchFunctionMode):
    """Write an event for every operator that something trainable influences.

    Influence is followed on storages, so it survives views, `.data` and `detach`; reach is asked of autograd's graph.
    A cut is where they part. Compiled regions run eagerly meanwhile, and backward runs on the calling thread.

    Args:
        listener: Told of forwards and backwards.
        leaves: Where trainable tensors are numbered; others are added when they are met.

    Attributes:
        step: The number of the step that events belong to; the listener counts.
        scaled_losses: What gradient scalers have multiplied in this step.
        paused: Whether operators pass unseen, as while an optimizer steps.
        is_stepping: Whether it is paused because an optimizer steps.
        notes: What was seen besides.
        modules: Every module that was called in this step.
        switches: Who switched gradients off.
        backwards: Stands in front of autograd's engine.
    """

    def __init__(self, listener: Listener, leaves: Leaves) -> None:
        super().__init__()
        self.listener, self.leaves = listener, leaves
        self.step, self.num_events, self.paused = 0, 0, False
        self.is_stepping = False
        self.notes, self.modules, self.switches = Notes(), ModuleUses(), GradSwitches()
        self.scaled_losses: set[Event] = set()
        self.backwards = BackwardWatch(self)
        self._marks = Marks()
        self._cleanup = ExitStack()

    def __enter__(self) -> FlowTrace:
        """Start to listen."""
        with ExitStack() as stack:
            stack.callback(self._forget)
            stack.enter_context(self.switches.installed())
            stack.enter_context(wrapped(torch.autograd, "_engine_run_backward", self.backwards.wrap_engine))
            # Global hooks: they are on no module, and see those made later.
            entering = register_module_forward_pre_hook(self._enter_module)
            stack.callback(entering.remove)
            leaving = register_module_forward_hook(self._leave_module, with_kwargs=True, always_call=True)
            stack.callback(leaving.remove)
            stack.callback(_global_forward_hooks_with_kwargs.pop, leaving.id, None)  # which torch's own remove forgets
            # Autograd's device threads would recompute checkpoints out of this mode's sight.
            stack.enter_context(torch.autograd.set_multithreading_enabled(False))
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(unwarned("Using `torch.compile(module)` when there are global hooks"))
            super().__enter__()  # type: ignore[no-untyped-call]
            self._cleanup = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        """Stop listening, and leave no mark on any tensor or graph."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._cleanup.close()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operator, and write down what it did to influence and reach."""
        kwargs = kwargs or {}
        if func in READ_ONLY:
            self.notes.hooked |= func in HOOKS
            return func(*args, **kwargs)
        if func is torch._C._set_grad_enabled:
            self.switches.switched(bool(args[0]))
            return func(*args, **kwargs)
        if self.paused:
            return func(*args, **kwargs)
        if draws_random_numbers(func, args, kwargs):
            self._draw(func, args, kwargs.get("generator"))
        if is_recomputing():
            return func(*args, **kwargs)
        return self._run(func, args, kwargs)

    def source(self, tensor: Tensor) -> Source:
        """What is known of a tensor now."""
        number = self.leaves.number(tensor)
        event = self._marks.event_of(tensor)
        if number < 0 and event is not None and isinstance(tensor, nn.Parameter):
            if event.reach and self._marks.own_event_of(tensor) is None:
                event = self._rewrap(tensor, event)
            if event.kind == "rewrap":
                return Source(event, 0, event.influence, -1)
        if (
            number < 0
            and tensor.requires_grad
            and tensor.is_leaf
            and (event is None or isinstance(tensor, nn.Parameter))
        ):
            number = self.leaves.add(tensor, Leaf(tensor, line=locate().line))
        if number >= 0 and not tensor.requires_grad and not self.leaves.all[number].is_held:
            return _NOTHING  # it was frozen after it was made
        if number >= 0:
            self.leaves.all[number].use_in(self.step)
            bit = 1 << number
            return Source(None, bit if tensor.requires_grad else 0, bit, number)
        reach = self.leaves.reach(tensor)
        if event is None:
            return Source(None, reach, reach, -1)
        if reach & ~event.reach and self._marks.own_event_of(tensor) is event:
            event.reach |= reach  # an autograd.Function's result gets its graph after its forward has run
            event.sources = _given_to_function(event)
            self.backwards.watch(event, tensor)
        return Source(event, reach, event.influence | reach, -1)

    def results(self) -> Iterator[tuple[Tensor, Event]]:
        """What operators made and is still there, and what made it."""
        return self._marks.living()

    def end_step(self) -> None:
        """Let go of what only the finished step needed."""
        self.backwards.prune()
        self.scaled_losses.clear()
        self.notes.end_step()
        self.modules.end_step()

    def _forget(self) -> None:
        self.backwards.forget()
        self._marks.forget(self.leaves)
        self.notes.forget()

    # --- operators

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = list(tensors_in(args))
        if kwargs:
            tensors += tensors_in(kwargs)
        if not tensors or func in SHAPE_ONLY:
            out = func(*args, **kwargs)
            if kwargs.get("requires_grad"):
                self._made_leaf(out)
            return out
        if func == GRAD_GET or func == GRAD_SET:
            if not is_called_by_torch(2):
                self.notes.num_reads[self.leaves.number(args[0])] += 1
            return func(*args, **kwargs)
        if func in REQUIRES_GRAD:
            return self._require_grad(func, args, kwargs)
        self.notes.masking.apply(func, args)
        if func is F.batch_norm:
            self.notes.masking.normalise(args, kwargs)
            if not is_called_by_torch(4):  # two frames are of its own dispatch
                self.notes.normalizes(running_statistics(args, kwargs))
        sources = self._sources(tensors)
        in_place = is_in_place(func)
        if not sources and not in_place:
            return self._run_uninfluenced(func, args, kwargs)
        return self._run_influenced(func, args, kwargs, tensors, sources, in_place)

    def _sources(self, tensors: list[Tensor]) -> tuple[Source, ...]:
        sources = [source for tensor in tensors if (source := self.source(tensor)).influence]
        if self.notes.may_be_copies(tensors, self.leaves):
            for tensor in tensors:
                if not self.source(tensor).influence:
                    self.notes.keep_copy(tensor)
        return tuple(sources)

    def _run_uninfluenced(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = func(*args, **kwargs)
        if event_kind(func) == "data":
            self.notes.aliased(args[0], out)
        elif kwargs.get("non_blocking"):
            self.notes.copied(out, args[0])
        return out

    def _run_influenced(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],
        sources: tuple[Source, ...],
        in_place: bool,
    ) -> Any:
        versions = [None if tensor.is_inference() else tensor._version for tensor in tensors]
        clips = func in CLIPS or (func in SCALES and len(tensors) > 1 and not tensors[1].dim())
        if in_place and clips and not self.source(tensors[0]).influence:
            self.listener.clipped(tensors[:1], locate().line)
        if in_place:
            self.notes.about_to_write(tensors[0])
        if func == DATA_SET and not tensors[0].is_leaf:
            self.notes.replaced(tensors[0])
        out = func(*args, **kwargs)
        influence = 0
        for source in sources:
            influence |= source.influence
        if func in ESCAPES:
            self.notes.escape(ESCAPES[func], influence, self.step)
            return out
        if event_kind(func) == "data":
            self.notes.aliased(args[0], out)
        mutated = [t for t, old in zip(tensors, versions, strict=True) if old is not None and t._version != old]
        if in_place and not mutated:
            mutated = tensors[:1]
        for tensor in mutated:
            owner = self.notes.wrote(tensor, self._marks.own_event_of(tensor))
            number = self.leaves.number(tensor if owner is None else owner)
            if number >= 0 and is_update(func):
                self.listener.wrote(number, locate().line)
        if influence:
            ids = {id(tensor) for tensor in tensors}
            outputs = [tensor for tensor in tensors_in((out,)) if id(tensor) not in ids]
            mutated = [tensor for tensor in mutated if self.leaves.number(tensor) < 0]
            if outputs or mutated:
                self._write(func, args, kwargs, sources, influence, outputs, mutated)
        return out

    def _write(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        sources: tuple[Source, ...],
        influence: int,
        outputs: list[Tensor],
        mutated: list[Tensor],
    ) -> None:
        first = (outputs + mutated)[0]
        event = self._new_event(name_of(func), sources, influence, outputs + mutated, kind=event_kind(func))
        event.floating = first.is_floating_point() or first.is_complex()
        event.scalar = first.numel() == 1
        event.shape = None if first.is_nested else tuple(first.shape)
        event.factor = factor_of(func, args)
        event.sums = is_sum(func, kwargs)
        event.single = is_over_one_element(func, args, kwargs)
        if first.requires_grad:
            self.notes.saved(func, args, kwargs, self.step, self.modules.current)
        leaf_storages = {storage_key(self.leaves.all[s.leaf].tensor) for s in sources if s.leaf >= 0}
        for tensor in outputs:
            self._marks.mark(tensor, event, overwrite=False, keep=storage_key(tensor) in leaf_storages)
            self.backwards.watch(event, tensor)
        for tensor in mutated:
            self._marks.mark(tensor, event, overwrite=True)
            self.backwards.watch(event, tensor)
        if kwargs.get("requires_grad"):
            self._made_leaf(first)

    def _new_event(
        self, op: str, sources: tuple[Source, ...], influence: int, results: list[Tensor], *, kind: EventKind
    ) -> Event:
        reach = 0
        for tensor in results:
            reach |= self.leaves.reach(tensor)
        enabled = torch.is_grad_enabled()
        context = None if enabled else self.switches.context or reentrant_context()
        located = locate(None if context is None else context.code)
        applied = apply_line() if context is None and not enabled else None
        event = Event(
            index=self.num_events,
            step=self.step,
            op=op,
            line=applied or located.line,
            near=located.line if applied else located.near,
            module=self.modules.current,
            sources=sources,
            influence=influence,
            reach=reach,
            kind=kind,
            grad_enabled=enabled,
            context=context,
            live=located.is_running,
            result=ref(results[0]),
        )
        self.num_events += 1
        for source in sources if reach else ():
            if source.leaf >= 0 and self.leaves.all[source.leaf].used_at is None:
                self.leaves.all[source.leaf].used_at = event.line
        self.notes.carried(event)
        return event

    def _draw(self, func: Any, args: tuple[Any, ...], generator: torch.Generator | None) -> None:
        inputs = list(tensors_in(args[:1]))
        influence = 0
        if not is_recomputing():
            for tensor in inputs:
                influence |= self.source(tensor).influence
        self.notes.drew(name_of(func), inputs, self.modules.current, influence, generator)
        self.modules.drew()

    # --- leaves

    def _rewrap(self, parameter: nn.Parameter, made: Event) -> Event:
        """A new parameter on a result that had a graph: it hides a cut, as requires_grad_ does."""
        source = Source(made, made.reach, made.influence, -1)
        event = self._new_event("nn.Parameter", (source,), made.influence, [parameter], kind="rewrap")
        event.reach = 0
        self._marks.mark(parameter, event, overwrite=True)
        return event

    def _require_grad(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensor = args[0]
        before = tensor.requires_grad
        out = func(*args, **kwargs)
        after = tensor.requires_grad
        if before != after or id(tensor) not in self.notes.frozen_at:
            self.notes.frozen_at[id(tensor)] = locate().line, after
        if after and tensor.is_leaf and self.leaves.number(tensor) < 0:
            event = self._marks.event_of(tensor)
            if event is not None and event.influence:  # something trainable made it: this hides a cut
                source = Source(event, 0, event.influence, -1)
                again = self._new_event("requires_grad_(True)", (source,), event.influence, [tensor], kind="reattach")
                self._marks.mark(tensor, again, overwrite=True)
            elif not before:
                self._made_leaf(tensor)
        return out

    def _made_leaf(self, out: Any) -> None:
        """The program asked for the gradient of a tensor that is no parameter."""
        if isinstance(out, Tensor) and out.requires_grad and out.is_leaf and not isinstance(out, nn.Parameter):
            if self._marks.own_event_of(out) is None:
                number = self.leaves.add(out, Leaf(out, line=locate().line))
                self.leaves.all[number].made_in = self.step

    # --- modules

    def _enter_module(self, module: nn.Module, inputs: Any) -> None:
        if self.is_stepping:  # an optimizer's step that raised never said that it ended
            self.paused = self.is_stepping = False
        if self.paused:
            return
        recomputing, influence = is_recomputing(), 0
        if not recomputing:
            if self.modules.current is None:
                if not is_transformed():
                    self.listener.began_forward(module)
                self.modules.begin_root(module, locate().line)
            for tensor in tensors_in(inputs):
                influence |= self.source(tensor).influence
        moves = module.training and isinstance(module, _NormBase)
        checkpoint, line = checkpoint_line() if moves else (None, None)
        self.modules.enter(module, influence, recomputing=recomputing, line=line, checkpoint=checkpoint)

    def _leave_module(self, module: nn.Module, _: Any, *rest: Any) -> None:
        *given, out = rest  # after an exception torch leaves the keyword arguments out
        if not self.paused:
            kwargs = given[0] if given else {}
            if kwargs and not is_recomputing():  # the hook before a forward is not told of them
                self.modules.given([self.source(tensor).influence for tensor in tensors_in(kwargs)])
            found = [] if is_recomputing() else [self._marks.event_of(tensor) for tensor in tensors_in((out,))]
            self.modules.leave(module, [event for event in found if event is not None])

    # --- backward

    def began_backward(self, backward: Backward, root: Tensor | None) -> None:
        """Autograd is about to go backward."""
        self.listener.began_backward(backward, root)

    def ended_backward(self, backward: Backward, results: list[Tensor]) -> None:
        """It has; gradients it returned depend on what the loss depends on."""
        if results and backward.influence:
            sources = tuple(Source(root.event, root.reach, root.influence, -1) for root in backward.roots)
            event = self._new_event("autograd.grad", sources, backward.influence, results, kind="gradient")
            event.shape = tuple(results[0].shape) if len(results) == 1 and not results[0].is_nested else None
            for tensor in results:
                self._marks.mark(tensor, event, overwrite=False)
                self.backwards.watch(event, tensor)
        self.listener.ended_backward(backward)

    def run_visibly(self, run: Callable[[], Any]) -> Any:
        """Run with this mode in force; torch sets it aside when a tensor's method called."""
        if any(mode is self for mode in _get_current_function_mode_stack()):
            return run()
        super().__enter__()  # type: ignore[no-untyped-call]
        try:
            return run()
        finally:
            super().__exit__(None, None, None)  # type: ignore[no-untyped-call]


def _given_to_function(event: Event) -> tuple[Source, ...]:
    """What the forward of an autograd.Function took from outside to make its result."""
    found: dict[Source, None] = {}
    seen: set[Event] = set()
    stack = [event]
    while stack:
        current = stack.pop()
        seen.add(current)
        for source in current.sources:
            if source.event is None or not source.event.is_inside_function:
                found[source] = None
            elif source.event not in seen:
                stack.append(source.event)
    return tuple(found)
