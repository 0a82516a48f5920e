"""A function applied to a few rows at a time, forward without a graph, backward with one chunk's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states

from frostline.errors import StepError
from frostline.ops.chunks import Output, as_outputs, chunked_map, join_rows, split_rows

_WHERE = "deferred_map"


def deferred_map(
    function: Callable[..., Output],
    inputs: Tensor | tuple[Tensor, ...],
    *,
    chunk_size: int,
    dim: int = 0,
    shared: tuple[Tensor, ...] = (),
    parameters: Iterable[Tensor] | None = None,
    preserve_rng_state: bool = True,
) -> Output:
    """Apply a function to slices of its inputs and join what it returns; each slice's graph is made in backward.

    Same as: ``function(*inputs, *shared)``, provided that row i of the outputs depends on row i of the inputs alone.
    Random numbers are drawn chunk by chunk, and the same ones again in backward.

    Proof class: ``ROUNDING``, like `chunked_map`; ``EXACT`` where one chunk holds all rows.

    Memory: the outputs, written chunk by chunk into one place, and what one chunk needs. Nothing is kept for a chunk.
    In backward also the gradients of `shared` and `parameters`, twice.

    Cost: more and smaller kernels, and one more forward. Autocast makes its copies of the weights again in every
    chunk: a copy that is made where nothing records would serve a later forward, and cut its gradient.

    Args:
        function: Takes one tensor an input and the shared ones; returns one tensor or a tuple of them.
        inputs: One tensor or several, of one size along `dim`.
        chunk_size: Rows a call; 0 is the plain call.
        dim: The dimension of the rows, in every input and in every output.
        shared: Tensors that every call gets whole. What requires a gradient and is no leaf belongs here, not into
            the function's closure.
        parameters: What the function trains besides; those of a module when left out.
        preserve_rng_state: Draw the same random numbers in the recomputation.

    Raises:
        ShapeError: Inputs of different sizes along `dim`, or an output that has another size than its inputs.
        ConfigError: No input, or a negative `chunk_size`.
        StepError: `function` returned something else than tensors, or its gradient reaches a tensor that was not
            given: that one would silently get none. In backward with ``create_graph=True``: there is no second
            derivative.

    Source: Zhang et al., ARF: Artistic Radiance Fields (2022), "deferred back-propagation", of a rendered image; here
    for any rows and as a node of the graph.
    """
    tensors = inputs if isinstance(inputs, tuple) else (inputs,)
    if chunk_size == 0:
        return function(*tensors, *shared)
    if not torch.is_grad_enabled():
        return chunked_map(function, tensors, chunk_size=chunk_size, dim=dim, shared=shared)
    if parameters is None:
        parameters = function.parameters() if isinstance(function, nn.Module) else ()
    trained = tuple(parameter for parameter in dict.fromkeys(parameters) if parameter.requires_grad)
    everything = (*tensors, *shared, *trained)
    work = _Work(function, len(tensors), len(shared), chunk_size, dim, _Surroundings.of(everything, preserve_rng_state))
    outputs = _Deferred.apply(work, *everything)  # type: ignore[no-untyped-call]
    return cast(Output, outputs[0] if work.single else outputs)


@dataclass(frozen=True)
class _Surroundings:
    """Autocast and random generators at the call, to be met again in backward."""

    autocast: tuple[tuple[str, bool, torch.dtype], ...]
    cpu_state: Tensor | None
    devices: tuple[int, ...]
    device_states: tuple[Tensor, ...]

    @classmethod
    def of(cls, tensors: Sequence[Tensor], preserve_rng_state: bool) -> _Surroundings:
        kinds = dict.fromkeys(["cpu", *(tensor.device.type for tensor in tensors if tensor.device.type != "meta")])
        autocast = tuple((kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds)
        if not preserve_rng_state:
            return cls(autocast, None, (), ())
        devices, states = get_device_states(*tensors)
        return cls(autocast, torch.get_rng_state(), tuple(devices), tuple(states))

    def same_autocast(self) -> AbstractContextManager[object]:
        stack = ExitStack()
        for kind, enabled, dtype in self.autocast:
            stack.enter_context(torch.autocast(kind, dtype, enabled, cache_enabled=False))
        return stack

    @contextmanager
    def same_random_numbers(self) -> Iterator[None]:
        if self.cpu_state is None:
            yield
            return
        with torch.random.fork_rng(devices=self.devices):
            torch.set_rng_state(self.cpu_state)
            set_device_states(self.devices, self.device_states)
            yield


@dataclass
class _Work:
    function: Callable[..., Any]
    num_inputs: int
    num_shared: int
    chunk_size: int
    dim: int
    surroundings: _Surroundings
    single: bool = False

    def call(self, rows: Sequence[Tensor], shared: Sequence[Tensor]) -> tuple[Tensor, ...]:
        part = self.function(*rows, *shared)
        self.single = isinstance(part, Tensor)
        return as_outputs(part, rows[0].shape[self.dim], self.dim, _WHERE)


class _Deferred(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, work: _Work, *tensors: Tensor) -> tuple[Tensor, ...]:
        inputs, others = tensors[: work.num_inputs], tensors[work.num_inputs :]
        shared, trained = others[: work.num_shared], others[work.num_shared :]
        slices = split_rows(inputs, work.chunk_size, work.dim, _WHERE)
        constants: list[bool] = []

        def apply(rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            if constants:
                return work.call(rows, shared)
            with torch.enable_grad():  # the first chunk shows what the gradient reaches
                leaves = [_leaf(tensor, tensor.requires_grad) for tensor in (*rows, *shared)]
                part = work.call(leaves[: len(rows)], leaves[len(rows) :])
            _refuse_strangers(part, (*leaves, *trained))
            constants.extend(not output.requires_grad for output in part)
            return tuple(output.detach() for output in part)

        with work.surroundings.same_autocast():
            outputs = join_rows(apply, slices, work.dim, _WHERE)
        ctx.work = work
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.mark_non_differentiable(*(o for o, constant in zip(outputs, constants, strict=True) if constant))
        return outputs

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise StepError(
                "deferred_map has no second derivative, and this backward has create_graph=True",
                do="take chunked_map where a gradient of a gradient is needed",
            )
        work: _Work = ctx.work
        tensors: tuple[Tensor, ...] = ctx.saved_tensors
        needs: tuple[bool, ...] = ctx.needs_input_grad[1:]
        gradients: list[Tensor | None] = [None] * len(tensors)
        num = work.num_inputs
        shared = [_leaf(t, n) for t, n in zip(tensors[num:], needs[num:], strict=True)][: work.num_shared]
        trained = tensors[num + work.num_shared :]
        with work.surroundings.same_autocast(), work.surroundings.same_random_numbers():
            start = 0
            for rows in split_rows(tensors[:num], work.chunk_size, work.dim, _WHERE):
                length = rows[0].shape[work.dim]
                leaves = [_leaf(row, need) for row, need in zip(rows, needs[:num], strict=True)]
                wanted = [*leaves, *shared, *trained]
                parts = _chunk_gradients(work, leaves, shared, wanted, needs, grad_outputs, start)
                for index, part in enumerate(parts):
                    if part is None:
                        continue
                    if index < num:
                        _place_(gradients, index, part, tensors[index], start, work.dim)
                    elif gradients[index] is None:
                        gradients[index] = part.clone()  # autograd's own may be a view, or somebody else's too
                    else:
                        gradients[index].add_(part)  # type: ignore[union-attr]
                del leaves, wanted, parts, part  # before the next graph is made
                start += length
        return (None, *gradients)


def _chunk_gradients(
    work: _Work,
    rows: Sequence[Tensor],
    shared: Sequence[Tensor],
    wanted: Sequence[Tensor],
    needs: Sequence[bool],
    grad_outputs: Sequence[Tensor | None],
    start: int,
) -> list[Tensor | None]:
    """Make one chunk's graph and go back through it."""
    with torch.enable_grad():
        outputs = work.call(rows, shared)
    pairs = [
        (output, whole.narrow(work.dim, start, output.shape[work.dim]))
        for output, whole in zip(outputs, grad_outputs, strict=True)
        if whole is not None and output.requires_grad
    ]
    sources = [tensor for tensor, need in zip(wanted, needs, strict=True) if need]
    found = iter(
        torch.autograd.grad([o for o, _ in pairs], sources, [g for _, g in pairs], allow_unused=True)
        if pairs and sources
        else [None] * len(sources)
    )
    return [next(found) if need else None for need in needs]


def _place_(gradients: list[Tensor | None], index: int, part: Tensor, whole: Tensor, start: int, dim: int) -> None:
    """Write the gradient of some rows of an input into that of the whole input."""
    gradient = gradients[index]
    if gradient is None:
        gradient = gradients[index] = torch.zeros_like(whole, memory_format=torch.contiguous_format)
    gradient.narrow(dim, start, part.shape[dim]).copy_(part)


def _leaf(tensor: Tensor, needs_gradient: bool) -> Tensor:
    return tensor.detach().requires_grad_(needs_gradient)


def _refuse_strangers(outputs: Sequence[Tensor], known: Sequence[Tensor]) -> None:
    """Walk the graph to its leaves, and refuse one that the node would not give a gradient to."""
    expected = {id(tensor) for tensor in known}
    waiting = [output.grad_fn for output in outputs if output.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        leaf = getattr(node, "variable", None) if type(node).__name__ == "AccumulateGrad" else None
        if leaf is not None and id(leaf) not in expected:
            raise StepError(
                f"deferred_map's function trains a tensor of shape {tuple(leaf.shape)} that it was not given",
                do="list it under parameters=, or what was made of it under shared=: it would get no gradient",
            )
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
