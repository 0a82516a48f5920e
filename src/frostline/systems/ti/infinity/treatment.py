"""What a step through a frozen transformer trades for memory; no gradient changes by a bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from frostline.errors import ConfigError
from frostline.ops import checkpoint_, offload_, store_bfloat16_
from frostline.systems.ti.infinity.blocks import Block
from frostline.systems.ti.infinity.transformer import Infinity
from frostline.units import MIB


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """Four choices, each ``EXACT`` and none of them dependent on `training`.

    Attributes:
        bfloat16_weights: The blocks' frozen matrices are stored in the type that autocast casts them to; such a
            step must run under autocast to bfloat16 (see `store_bfloat16_`).
        checkpoint_blocks: A block keeps its input alone, and is run again in backward.
        checkpoint_parts: So do its self-attention, cross-attention and feed-forward network, each by itself; inside
            a checkpointed block that is a third forward, and one part's activations at a time.
        offload: What the blocks keep lies outside the device's memory between forward and backward.
    """

    bfloat16_weights: bool = False
    checkpoint_blocks: bool = False
    checkpoint_parts: bool = False
    offload: bool = False

    def __str__(self) -> str:
        names = {
            "bfloat16 weights": self.bfloat16_weights,
            "checkpointed blocks": self.checkpoint_blocks,
            "checkpointed parts": self.checkpoint_parts,
            "offloaded boundaries": self.offload,
        }
        return ", ".join(name for name, chosen in names.items() if chosen) or "no treatment"


_FROSTLINE = {"bfloat16_weights": True, "checkpoint_blocks": True, "checkpoint_parts": True}
TREATMENTS: Mapping[str, Treatment] = {
    "frozen": Treatment(),
    "checkpointed": Treatment(checkpoint_blocks=True),
    "bf16-weights": Treatment(checkpoint_blocks=True, bfloat16_weights=True),
    "frostline": Treatment(**_FROSTLINE),
    "frostline-offload": Treatment(**_FROSTLINE, offload=True),
}
"""From the plain frozen model to the leanest, one choice after the other."""


class _Handle(Protocol):
    def remove(self) -> None: ...


@dataclass(frozen=True)
class Treated:
    """What `treat_` installed.

    Attributes:
        model: The treated transformer.
        handles: Of the operators, in the order they were installed.
    """

    model: Infinity
    handles: tuple[_Handle, ...]

    def remove(self) -> None:
        """Take everything off again, the last first. Twice is once."""
        for block in self.model.all_blocks:
            block.recomputes_parts = False
        for handle in reversed(self.handles):
            handle.remove()


def treat_(
    model: Infinity,
    treatment: Treatment,
    *,
    weight_file: Path | None = None,
    folder: Path | None = None,
    min_bytes: int = MIB,
) -> Treated:
    """Apply a treatment to a frozen transformer.

    Args:
        model: Freeze it first, for `bfloat16_weights`.
        treatment: What to do.
        weight_file: Where the float32 values of stored weights go; see `store_bfloat16_`.
        folder: Offload into a file there; None moves to host memory, which saves nothing on the CPU.
        min_bytes: Smaller tensors are not offloaded.

    Returns:
        The handle whose `remove` takes it off.

    Raises:
        ConfigError: Weights to store but no file for them, or a model that is not frozen.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, Block)]
    handles: list[_Handle] = []
    if treatment.bfloat16_weights:
        if weight_file is None:
            raise ConfigError("bfloat16 weights need a file for their float32 values", do="give weight_file")
        if any(parameter.requires_grad for parameter in model.parameters()):
            raise ConfigError("bfloat16 weights need a frozen transformer", do="call freeze_(model) first")
        handles.append(store_bfloat16_(model.block_list, weight_file))
    for block in model.all_blocks:
        block.recomputes_parts = treatment.checkpoint_parts
    if treatment.checkpoint_blocks:
        handles.append(checkpoint_(model, names))
    if treatment.offload:
        handles.append(offload_(model, names, folder=folder, min_bytes=min_bytes))
    return Treated(model, tuple(handles))
