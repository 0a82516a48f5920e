"""What a flow trace notes besides influence and reach: escapes, writes, random numbers, habits."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from frostline.tracing.event import Draw, Escape, Event, Source
from frostline.tracing.leaves import Leaves, graph_of, is_recomputing
from frostline.tracing.marks import storage_of
from frostline.tracing.masking import Masking
from frostline.tracing.operators import keeps_needless_input, keeps_result
from frostline.tracing.stack import checkpoint_line, locate
from frostline.tracing.values import has_values
from frostline.where import Line

_MOST_CONSTANTS = 32


class Change(NamedTuple):
    """A tensor was written in place.

    Attributes:
        tensor: What was written, without its graph.
        through_data: Whether through `.data`, where autograd cannot see it.
        line: The user's line.
        sequence: The number autograd would have given to a node then, where it matters.
    """

    tensor: Tensor
    through_data: bool
    line: Line | None
    sequence: int


class Notes:
    """Facts about a program that are not edges of its graph.

    Attributes:
        escapes: Influenced values that left torch, by operator and line.
        draws: Operators that drew random numbers in modules, in this step.
        changes: Tensors written in place in this step, outside optimizers.
        writes: By id of a parameter: the last line that wrote to it in place, outside optimizers.
        frozen_at: By id of a tensor: the line that last set its requires_grad, and to what.
        num_reads: By number of a leaf: how often the program read its `.grad`.
        chains: Lines that add to what they made in an earlier step, graph included, and how often.
        saved_inputs: Lines, and the modules that ran there, whose frozen operators keep inputs for backward that they
            do not need and nothing else keeps; bytes in a step.
        constants: Tensors of a trainable tensor's shape that nothing trainable influences, and where they were read.
        hooked: Whether the program has hooks on tensors.
        originals: By id of a parameter: what it was before the program first wrote to it; None where nobody asks.
        normalized: By id of running statistics: the line that called a functional batch norm in training mode on them.
        unpinned: Lines that ask for an asynchronous copy from memory that is not pinned.
        masking: Follows samples that masks empty to the batch norms that count them.
    """

    def __init__(self) -> None:
        self.escapes: dict[tuple[str, Line | None], Escape] = {}
        self.draws: list[Draw] = []
        self.changes: list[Change] = []
        self.writes: dict[int, Line | None] = {}
        self.frozen_at: dict[int, tuple[Line | None, bool]] = {}
        self.num_reads: Counter[int] = Counter()
        self.chains: Counter[Line] = Counter()
        self.saved_inputs: dict[tuple[Line, nn.Module | None], int] = {}
        self.constants: list[tuple[Tensor, Line]] = []
        self.normalized: dict[int, Line | None] = {}
        self.unpinned: set[Line] = set()
        self.masking = Masking()
        self.hooked = False
        self.originals: dict[int, tuple[nn.Parameter, Tensor]] | None = None
        self._aliases: dict[int, nn.Parameter] = {}
        self._shapes: set[torch.Size] = set()
        self._num_shapes = 0
        self._step_of_inputs = -1

    def end_step(self) -> None:
        """Let go of what only the finished step needed."""
        self.draws, self.changes = [], []
        self.masking.end_step()
        self.constants.clear()

    def forget(self) -> None:
        """Hold on to no tensor."""
        self.end_step()
        self._aliases.clear()

    def escape(self, op: str, influence: int, step: int) -> None:
        """An influenced value left torch."""
        line = locate().line
        known = self.escapes.get((op, line))
        self.escapes[op, line] = Escape(op, line, influence | (known.influence if known else 0), step)

    def about_to_write(self, tensor: Tensor) -> None:
        """An operator is about to write to a tensor."""
        owner = self._owner(tensor)
        if self.originals is not None and owner is not None and id(owner) not in self.originals:
            self.originals[id(owner)] = owner, owner.detach().clone()

    def _owner(self, tensor: Tensor) -> nn.Parameter | None:
        """The parameter whose values a tensor shows."""
        if isinstance(tensor, nn.Parameter):
            return tensor
        storage = storage_of(tensor) if self._aliases else None
        return None if storage is None else self._aliases.get(storage._cdata)

    def wrote(self, tensor: Tensor, event: Event | None) -> nn.Parameter | None:
        """An operator wrote to a tensor, which `event` made; returns the parameter whose values they are."""
        line = locate().line
        owner = self._owner(tensor)
        if owner is not None:
            self.writes[id(owner)] = line
        through_data = event is not None and event.kind == "data"
        self.changes.append(Change(tensor.detach(), through_data, line, _sequence() if through_data else 0))
        return owner

    def replaced(self, tensor: Tensor) -> None:
        """The program is about to give a tensor other data."""
        self.changes.append(Change(tensor.detach(), True, locate().line, _sequence()))

    def aliased(self, parameter: Any, alias: Any) -> None:
        """The program took a parameter's `.data`."""
        storage = storage_of(alias)
        if isinstance(parameter, nn.Parameter) and storage is not None:
            self._aliases[storage._cdata] = parameter

    def normalizes(self, statistics: tuple[Tensor, ...]) -> None:
        """A functional batch norm is about to update running statistics."""
        line = locate().line
        self.normalized.update((id(tensor), line) for tensor in statistics)

    def copied(self, out: Any, source: Any) -> None:
        """The program asked for an asynchronous copy."""
        if isinstance(out, Tensor) and out.is_cuda and not source.is_cuda and not source.is_pinned():
            line = locate().line
            if line is not None:
                self.unpinned.add(line)

    def drew(
        self,
        op: str,
        inputs: list[Tensor],
        module: nn.Module | None,
        influence: int,
        generator: torch.Generator | None = None,
    ) -> None:
        """An operator drew random numbers."""
        checkpoint, line = checkpoint_line()
        self.draws.append(
            Draw(
                op=op,
                line=line,
                module=module,
                grad_enabled=torch.is_grad_enabled(),
                recomputing=is_recomputing(),
                state=_generator_state(inputs) if generator is None else bytes(generator.get_state().numpy()),
                checkpoint=checkpoint,
                training=module is None or module.training,
                influence=influence,
            )
        )

    def carried(self, event: Event) -> None:
        """Note a line that adds to what it made in an earlier step, as a running sum of losses does."""
        if event.reach and event.line is not None and any(_carries(source, event) for source in event.sources):
            self.chains[event.line] += 1

    def saved(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], step: int, module: nn.Module | None
    ) -> None:
        """Note a frozen operator that keeps an input for nothing."""
        if not keeps_needless_input(func, args, kwargs) or keeps_result(graph_of(args[0])):
            return
        if step != self._step_of_inputs:
            self._step_of_inputs = step
            self.saved_inputs.clear()
        line = locate().line
        if line is not None:
            num_bytes = args[0].numel() * args[0].element_size()
            self.saved_inputs[line, module] = self.saved_inputs.get((line, module), 0) + num_bytes

    def may_be_copies(self, tensors: list[Tensor], leaves: Leaves) -> bool:
        """Whether one of the tensors has a trainable tensor's shape."""
        if len(leaves.all) != self._num_shapes:
            new = leaves.all[self._num_shapes :]
            self._shapes |= {leaf.tensor.shape for leaf in new if leaf.tensor.dim()}
            self._num_shapes = len(leaves.all)
        if len(self.constants) >= _MOST_CONSTANTS:
            return False
        return not self._shapes.isdisjoint(tensor.shape for tensor in tensors)

    def keep_copy(self, tensor: Tensor) -> None:
        """Keep a tensor that nothing trainable influences: it may be a stale copy of a parameter."""
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor) or isinstance(tensor, nn.Parameter):
            return
        if tensor.shape in self._shapes and tensor.is_floating_point():
            line = locate().line
            if line is not None:
                self.constants.append((tensor.detach(), line))


def _sequence() -> int:
    """The number of the next node of autograd's graph."""
    with torch.enable_grad():
        node: Any = torch.zeros((), requires_grad=True).view(()).grad_fn
    return int(node._sequence_nr())


def _carries(source: Source, event: Event) -> bool:
    before = source.event
    return before is not None and before.step < event.step and before.line == event.line and bool(source.reach)


def _generator_state(inputs: list[Tensor]) -> bytes | None:
    if torch._guards.detect_fake_mode() is not None or not all(map(has_values, inputs)):
        return None
    on_cuda = any(tensor.is_cuda for tensor in inputs)
    state = torch.cuda.get_rng_state() if on_cuda else torch.get_rng_state()
    return bytes(state.numpy())
