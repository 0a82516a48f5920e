"""Features of prompts with the concepts in them: what training, validation and drawing give to the transformer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from frostline.systems.ti.concept import Concept
from frostline.systems.ti.infinity.text import CompactText
from frostline.systems.ti.prompts import Prompt, substitute
from frostline.systems.ti.text_encoder import PromptFeatures, TextEncoder


class TextSource(Protocol):
    """What a loss asks for text features."""

    def fetch(self, numbers: Sequence[int], concepts: Sequence[Concept]) -> CompactText:
        """Features of some prompts; the concepts are part of the graph."""
        ...


class Texts:
    """Text features of a list of prompts; each is encoded once, wherever the concepts live behind the encoder.

    Args:
        encoder: Of text.
        prompts: Rewritten.
        directory: Where the cache's file goes; None keeps features in host memory.

    Attributes:
        prompts: As given.
    """

    def __init__(self, encoder: TextEncoder, prompts: Sequence[Prompt], directory: Path | None = None) -> None:
        self.prompts, self._encoder = tuple(prompts), encoder
        inner = any(span.space == "t5-input" for prompt in prompts for span in prompt.spans)
        self._cached = None if inner or not prompts else PromptFeatures(encoder, prompts, directory=directory)

    @classmethod
    def of(
        cls, encoder: TextEncoder, texts: Iterable[str], concepts: Sequence[Concept], directory: Path | None = None
    ) -> Texts:
        """Of prompts as they are written, with or without placeholders.

        Raises:
            DataError: One names another concept, or is too long.
        """
        return cls(encoder, [encoder.rewrite(text, concepts, required=False) for text in texts], directory)

    def fill_(self) -> None:
        """Encode what can be cached."""
        if self._cached is not None:
            for number in range(len(self.prompts)):
                self._cached.fetch([number])

    def fetch(self, numbers: Sequence[int], concepts: Sequence[Concept]) -> CompactText:
        """Features of some prompts, on the concepts' device; the concepts are part of the graph.

        Args:
            numbers: In the list of prompts.
            concepts: Whose vectors go into them; those that the prompts were written for.
        """
        chosen = [self.prompts[number] for number in numbers]
        if self._cached is None:
            text = self._encoder.encode_through(chosen, concepts)
        else:
            text = self._cached.fetch(numbers)
        if concepts:
            text = text.to(concepts[0].vectors.device)
        return substitute(text, chosen, concepts)

    def fetch_all(self, concepts: Sequence[Concept]) -> CompactText:
        """Features of all prompts."""
        return self.fetch(range(len(self.prompts)), concepts)
