"""What a LINet makes again in backward instead of keeping it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import Tensor

from frostline.errors import ConfigError
from frostline.ops import Recipes

Recompute = Literal["none", "activations", "outputs", "blocks"]
"""How much of a block: nothing; what follows a normalisation inside it; its output too; all but its output.

An output is made from the block's input, and so from the output before it: with ``outputs``, every fourth block of a
stage keeps its own, so that the chain ends there.
"""

Kind = Literal["stream", "sum", "activation", "shortcut", "output"]
"""A convolved stream, the integrated sum, and what becomes of them: inside, on the side and behind a block."""

_DROPPED: dict[Recompute, frozenset[Kind]] = {
    "none": frozenset(),
    "activations": frozenset({"activation"}),
    "outputs": frozenset({"activation", "shortcut", "output"}),
    "blocks": frozenset({"stream", "sum", "activation", "shortcut"}),
}
_ANCHOR_EVERY = 4


@dataclass(frozen=True)
class Treatment:
    """What to trade for memory; gradients and statistics stay the same.

    Attributes:
        recompute: For every block that `blocks` does not name.
        blocks: For single blocks, by name, such as ``layer1.0``.
        stem_slices: 0 keeps what the stem saves; from 1 on it keeps the images and goes back through
            normalisation, ReLU and pooling in so many slices of its channels, as far as each has 16 of them.
    """

    recompute: Recompute = "none"
    blocks: Mapping[str, Recompute] = field(default_factory=dict)
    stem_slices: int = 0

    def __post_init__(self) -> None:
        for level in (self.recompute, *self.blocks.values()):
            if level not in get_args(Recompute):
                raise ConfigError(f"recompute is {level!r}", do=f"choose one of {', '.join(get_args(Recompute))}")
        if self.stem_slices < 0:
            raise ConfigError(f"stem_slices is {self.stem_slices}", do="give 1 or more, or 0 for the plain stem")

    def __str__(self) -> str:
        stages = sorted({name.partition(".")[0] for name in self.blocks})
        apart = f", {self.blocks[next(iter(self.blocks))]} of {', '.join(stages)}" if stages else ""
        stem = f", stem in {self.stem_slices} slices" if self.stem_slices else ""
        return f"recompute {self.recompute}{apart}{stem}"

    def of(self, block: str) -> Recompute:
        """How much of a block."""
        level = self.blocks.get(block, self.recompute)
        is_anchor = int(block.rpartition(".")[2]) % _ANCHOR_EVERY == _ANCHOR_EVERY - 1
        return "activations" if level == "outputs" and is_anchor else level


@dataclass(frozen=True)
class Recall:
    """The recipes of one forward, as one block may use them.

    Attributes:
        recipes: Of the forward.
        recompute: How much of the block.
    """

    recipes: Recipes
    recompute: Recompute = "none"

    def add(self, kind: Kind, tensor: Tensor, make: Callable[..., Tensor], *arguments: Any) -> None:
        """Remember how to make a tensor, if the block drops its kind; see `Recipes.add`."""
        if kind in _DROPPED[self.recompute]:
            self.recipes.add(tensor, make, *arguments)
