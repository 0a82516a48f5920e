"""What a step runs: a frozen Infinity, and the concepts that its prompts name."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from frostline.errors import ConfigError
from frostline.systems.ti.concept import Concept
from frostline.systems.ti.infinity.transformer import Infinity


class TiModel(nn.Module):
    """A frozen transformer and the vectors that train, which are parameters under their placeholders.

    A checkpoint of it holds one tensor a concept under its placeholder, as `save_concepts` writes them.

    Args:
        transformer: Frozen.
        concepts: What trains.
        text_encoder: Frozen, where it is part of the graph: for concepts that live before it.

    Attributes:
        transformer: As given.
        concepts: As given.

    Raises:
        ConfigError: A placeholder has a dot, or two are the same.
    """

    def __init__(
        self, transformer: Infinity, concepts: Sequence[Concept], text_encoder: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.text_encoder = text_encoder
        self.concepts = tuple(concepts)  # a tuple: their parameters are registered under names of our own
        for concept in concepts:
            if "." in concept.name or concept.name in self._parameters:
                what = "has a dot" if "." in concept.name else "is given twice"
                raise ConfigError(f"the placeholder {concept.name} {what}", do="give each concept a plain name: <cat>")
            self.register_parameter(concept.name, concept.vectors)
