"""The table of what can be done to a unit. A new way to save memory is one more row.

A row treats one module between its forward and its backward, and changes nothing that is there before the step.
Whatever does something else has no row: micro-batches change the step itself, recipes are written into a model, and
frozen weights in bfloat16 need a file and a step under autocast.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from torch import nn

from frostline.errors import PlanError
from frostline.ops import checkpoint_, compress_, lean_, offload_
from frostline.ops.compress import Code
from frostline.planner.chunking import chunk_
from frostline.records import ProofClass


class Handle(Protocol):
    """What an installation returns."""

    def remove(self) -> None:
        """Take it off again."""
        ...


@dataclass(frozen=True)
class Facts:
    """What is known of a unit before it is treated.

    Attributes:
        module: The unit itself.
        trains_before: Whether a gradient comes out of it: something trains in it or before it.
        impure: Why its forward must not be run twice; empty if it may.
        mixing: Why its samples cannot be taken apart; empty if they can.
    """

    module: nn.Module
    trains_before: bool
    impure: str
    mixing: str


@dataclass(frozen=True)
class Way:
    """One way to treat a unit.

    Attributes:
        proof_class: Of the step's gradients under it.
        install: Treats one module of a model, by qualified name and with the treatment's arguments.
        refuses: Why it cannot be had for a unit; empty if it can.
        arguments: What it takes, with the values that a plan gives.
        parts: The kinds it combines, which stand before it; it is only tried where each of them has an effect.
    """

    proof_class: ProofClass
    install: Callable[[nn.Module, str, Mapping[str, int]], Handle]
    refuses: Callable[[Facts], str]
    arguments: Mapping[str, int] | None = None
    parts: tuple[str, ...] = ()


def ways(kind: str, arguments: Mapping[str, int]) -> Way:
    """The row of a kind.

    Raises:
        PlanError: There is none, or it takes other arguments.
    """
    if kind not in WAYS:
        raise PlanError(f"no treatment is called {kind!r}", do=f"take one of {', '.join(WAYS)}")
    way = WAYS[kind]
    expected = way.arguments or {}
    if set(arguments) != set(expected) or any(type(value) is not int or value < 1 for value in arguments.values()):
        wanted = ", ".join(f"{name}, such as {value}" for name, value in expected.items()) or "none"
        raise PlanError(f"{kind!r} cannot have the arguments {dict(arguments)}", do=f"give {wanted}")
    return way


def lean_layers(model: nn.Module, *, beside: Collection[str]) -> tuple[str, ...]:
    """The single layers of a model that have a lean form and lie in none of some modules.

    Such are the layers of a stem, which no repeated block holds.
    """
    handle = lean_(model)
    handle.remove()
    return tuple(
        name for name in handle.units if name and not any(f"{name}.".startswith(f"{other}.") for other in beside)
    )


class _Several:
    """Several handles as one; the last installed goes first."""

    def __init__(self, *handles: Handle) -> None:
        self._handles = handles

    def remove(self) -> None:
        for handle in reversed(self._handles):
            handle.remove()


def _checkpoint(model: nn.Module, unit: str, _: Mapping[str, int]) -> Handle:
    return checkpoint_(model, [model.get_submodule(unit)])


def _lean(model: nn.Module, unit: str, _: Mapping[str, int]) -> Handle:
    return lean_(model.get_submodule(unit))


def _both(model: nn.Module, unit: str, arguments: Mapping[str, int]) -> Handle:
    layers = _lean(model, unit, arguments)
    try:
        return _Several(layers, _checkpoint(model, unit, arguments))
    except BaseException:
        layers.remove()
        raise


def _chunk(model: nn.Module, unit: str, arguments: Mapping[str, int]) -> Handle:
    return chunk_(model.get_submodule(unit), arguments["num_chunks"])


def _offload(model: nn.Module, unit: str, _: Mapping[str, int]) -> Handle:
    return offload_(model, [model.get_submodule(unit)])


def _compress(code: Code, model: nn.Module, unit: str, _: Mapping[str, int]) -> Handle:
    return compress_(model, [model.get_submodule(unit)], code=code)


def _refuse_checkpoint(facts: Facts) -> str:
    return facts.impure if facts.trains_before else "no gradient passes through it, so it keeps nothing"


def _refuse_lean(facts: Facts) -> str:
    if not facts.trains_before:
        return "no gradient passes through it, so it keeps nothing"
    handle = lean_(facts.module)
    handle.remove()
    return "" if handle.units else "none of its layers has a lean form"


def _refuse_offload(facts: Facts) -> str:
    if all(parameter.device.type == "cpu" for parameter in facts.module.parameters()):
        return "what lies on the CPU has nowhere to go"
    return _refuse_compress(facts)


def _refuse_compress(facts: Facts) -> str:
    return "" if facts.trains_before else "no gradient passes through it, so it keeps nothing"


def _refuse_both(facts: Facts) -> str:
    return _refuse_checkpoint(facts) or _refuse_lean(facts)


def _refuse_chunk(facts: Facts) -> str:
    return "a gradient passes through it" if facts.trains_before else facts.impure or facts.mixing


WAYS: dict[str, Way] = {
    "checkpoint": Way("EXACT", _checkpoint, _refuse_checkpoint),
    "lean": Way("EXACT", _lean, _refuse_lean),
    "lean-checkpoint": Way("EXACT", _both, _refuse_both, parts=("lean", "checkpoint")),
    "offload": Way("EXACT", _offload, _refuse_offload),
    "compress-bfloat16": Way("BOUNDED", partial(_compress, "bfloat16"), _refuse_compress),
    "compress-int8": Way("BOUNDED", partial(_compress, "int8"), _refuse_compress),
    "chunk": Way("ROUNDING", _chunk, _refuse_chunk, {"num_chunks": 16}),
}
"""Every kind of treatment by its name in a plan; ``keep`` is the absence of one."""
