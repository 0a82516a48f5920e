"""Watch autograd go backward: from where, how far it gets, and how large the gradients are on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol
from weakref import ref

import torch
from torch import Tensor

from frostline.tracing.event import Backward, Event, Root, Source
from frostline.tracing.leaves import Leaves, graph_of, is_recomputing
from frostline.tracing.stack import locate
from frostline.tracing.values import magnitude_of, tensors_in


class Sources(Protocol):
    """What a backward watch asks of the flow trace."""

    leaves: Leaves
    step: int
    paused: bool
    scaled_losses: set[Event]

    def source(self, tensor: Tensor) -> Source:
        """What is known of a tensor."""
        ...

    def began_backward(self, backward: Backward, root: Tensor | None) -> None:
        """Autograd is about to go backward."""
        ...

    def ended_backward(self, backward: Backward, results: list[Tensor]) -> None:
        """It has; `results` are gradients it returned."""
        ...

    def run_visibly(self, run: Callable[[], Any]) -> Any:
        """Run something with the trace in force, whoever called."""
        ...


class BackwardWatch:
    """Stands between torch and its autograd engine.

    Args:
        flow: The trace it belongs to.
    """

    def __init__(self, flow: Sources) -> None:
        self._flow = flow
        self._current: Backward | None = None
        self._handles: list[Any] = []
        self.num_backwards = 0

    def wrap_engine(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Put the watch in front of the engine's one entry, which `backward` and `autograd.grad` share."""

        def run(outputs: Any, *args: Any, **kwargs: Any) -> Any:
            if is_recomputing() or self._current is not None:
                return original(outputs, *args, **kwargs)
            self._flow.paused = False  # an optimizer's step that raised never said that it ended
            return self._go(lambda: original(outputs, *args, **kwargs), outputs, args, kwargs)

        return run

    def watch(self, event: Event, tensor: Tensor) -> None:
        """Note, in every later backward, how large the gradient is that comes to an event's result."""
        node = graph_of(tensor)
        if node is None or not tensor.requires_grad:
            return

        def look(gradients: tuple[Tensor | None, ...]) -> None:
            if self._current is not None:
                norms = self._current.norms.setdefault(event, [])
                norms += [magnitude_of(gradient) for gradient in gradients if gradient is not None]

        self._handles.append(node.register_prehook(look))

    def gradients_of(self, term: Tensor, numbers: list[int]) -> tuple[list[Tensor | None], Backward]:
        """The gradients of one scalar alone, with the graph kept, and what came to each event on the way.

        Args:
            term: A scalar with a graph.
            numbers: The leaves whose gradients are returned, None where none arrives.
        """
        alone = Backward(-1, self._flow.step, None, (), False, None, True, False)
        tensors = [self._flow.leaves.all[number].tensor for number in numbers]
        self._current, paused, self._flow.paused = alone, self._flow.paused, True
        try:
            found = torch.autograd.grad(term, tensors, retain_graph=True, allow_unused=True)
        finally:
            self._current, self._flow.paused = None, paused
        return list(found), alone

    def prune(self) -> None:
        """Let go of hooks whose graphs are gone."""
        self._handles = [handle for handle in self._handles if handle.hooks_dict_ref() is not None]

    def forget(self) -> None:
        """Take every hook away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _go(self, run: Callable[[], Any], outputs: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        roots = list(tensors_in((outputs,)))
        backward = self._describe(roots, args, kwargs)
        self._flow.began_backward(backward, roots[0] if roots else None)
        before = [_stamp(leaf.tensor.grad) for leaf in self._flow.leaves.all]
        self._current = backward
        results: list[Tensor] = []
        try:
            out = self._flow.run_visibly(run)
            results = list(tensors_in(out or ()))
            return out
        except BaseException as error:
            backward.error = error
            raise
        finally:
            self._current = None
            backward.arrived = self._arrived(backward, before, results)
            self._flow.ended_backward(backward, results)

    def _describe(self, roots: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Backward:
        _, retain_graph, create_graph, inputs = args[:4]
        sources = [(self._flow.source(tensor), tuple(tensor.shape)) for tensor in roots]
        targets = None
        if inputs:
            numbers = [self._flow.leaves.number(tensor) for tensor in tensors_in(inputs)]
            targets = sum(1 << number for number in set(numbers) if number >= 0)
        self.num_backwards += 1
        return Backward(
            index=self.num_backwards,
            step=self._flow.step,
            line=locate().line,
            roots=tuple(Root(source.event, source.influence, source.reach, shape) for source, shape in sources),
            accumulates=bool(kwargs.get("accumulate_grad", True)),
            targets=targets,
            retains=bool(retain_graph) and not create_graph,
            creates=bool(create_graph),
            scaled=any(_is_made_of(source.event, self._flow.scaled_losses) for source, _ in sources),
            loss=ref(roots[0]) if roots else None,
        )

    def _arrived(self, backward: Backward, before: list[tuple[int, int] | None], results: list[Tensor]) -> int:
        if not backward.accumulates:
            return (backward.targets or 0) if results else 0
        arrived = 0
        for number, leaf in enumerate(self._flow.leaves.all):
            stamp = _stamp(leaf.tensor.grad)
            if stamp is not None and (number >= len(before) or stamp != before[number]):
                arrived |= 1 << number
        return arrived


def _is_made_of(loss: Event | None, losses: set[Event]) -> bool:
    """Whether a loss is one of these, or a multiple or a sum of some."""
    seen: set[Event] = set()
    stack = [loss]
    while stack and losses:
        event = stack.pop()
        if event is None or event in seen:
            continue
        seen.add(event)
        if event in losses:
            return True
        if event.scalar:
            stack += [source.event for source in event.sources]
    return False


def _stamp(gradient: Tensor | None) -> tuple[int, int] | None:
    return None if gradient is None else (id(gradient), gradient._version)
