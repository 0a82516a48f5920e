"""Prompts with placeholders: what the text encoder reads, and where concepts take its place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from frostline.errors import ConfigError, DataError, ShapeError
from frostline.systems.ti.infinity.text import CompactText

if TYPE_CHECKING:
    from frostline.systems.ti.concept import Concept

Space = Literal["t5-output", "t5-input"]
"""Where vectors live: in the place of T5's last hidden states, or of its input embeddings."""

MAX_TOKENS = 512
"""Longest prompt of the published model, end token included."""

_PLACEHOLDER = re.compile(r"<[^<>\s]+>")


@dataclass(frozen=True)
class Slot:
    """What a placeholder stands for.

    Attributes:
        name: The placeholder, such as ``<s>``.
        carrier: The word that the text encoder reads in its place.
        num_vectors: Positions it fills.
        space: Where its vectors go.

    Raises:
        ConfigError: It has no name in angle brackets, no carrier or no vectors.
    """

    name: str
    carrier: str
    num_vectors: int
    space: Space = "t5-output"

    def __post_init__(self) -> None:
        if not _PLACEHOLDER.fullmatch(self.name):
            raise ConfigError(f"{self.name!r} is no placeholder", do="write it like <s>: brackets, no blanks")
        if not self.carrier.strip() or _PLACEHOLDER.search(self.carrier):
            raise ConfigError(f"{self.carrier!r} is no carrier of {self.name}", do="give a word of the language: dog")
        if self.num_vectors < 1:
            raise ConfigError(f"{self.name} has {self.num_vectors} vectors", do="take 1 or more")
        if self.space not in ("t5-output", "t5-input"):
            raise ConfigError(f"{self.name} lives in {self.space!r}", do="take t5-output or t5-input")


@dataclass(frozen=True)
class Span:
    """Positions of one placeholder in a prompt's tokens.

    Attributes:
        concept: The placeholder.
        start: Its first position.
        length: How many there are.
        space: Where the vectors go.
    """

    concept: str
    start: int
    length: int
    space: Space


@dataclass(frozen=True)
class Prompt:
    """A prompt as the text encoder reads it.

    Attributes:
        text: Carriers instead of placeholders. The tokenizer makes `ids` of it, and so does anyone's who reads it.
        ids: Tokens with the end token.
        spans: Where concepts go, in order.
    """

    text: str
    ids: tuple[int, ...]
    spans: tuple[Span, ...]


def rewrite(
    prompt: str,
    tokenizer: Any,
    concepts: Iterable[Slot | Concept],
    *,
    max_tokens: int = MAX_TOKENS,
    required: bool = True,
) -> Prompt:
    """Put carriers in the place of placeholders, as often as they fill exactly their positions.

    Neighbours are encoded beside the carrier, in training and in inference: the same features in both.

    Args:
        prompt: With any number of placeholders.
        tokenizer: A fast one of transformers.
        concepts: Those that the prompt may name.
        max_tokens: Longest prompt, end token included.
        required: Whether a prompt must name one. Training demands it: others teach nothing.

    Raises:
        DataError: A placeholder is absent or unknown, would be cut off, or does not fill its positions.
        ConfigError: Two concepts of one name, or a tokenizer that does not say where its tokens come from.
    """
    slots = _by_name(concept if isinstance(concept, Slot) else concept.slot for concept in concepts)
    text, ranges = "", []
    end = 0
    for match in _PLACEHOLDER.finditer(prompt):
        if match[0] not in slots:
            raise DataError(
                f"no concept is named {match[0]}", where=repr(prompt), do=f"there are {_listed(slots)}; or leave it out"
            )
        slot = slots[match[0]]
        text += prompt[end : match.start()]
        filling = _filling(slot, tokenizer)
        ranges.append((slot, len(text), len(text) + len(filling)))
        text += filling
        end = match.end()
    text += prompt[end:]
    if required and not ranges:
        raise DataError(
            f"the prompt has none of the placeholders {_listed(slots)}: it cannot train them",
            where=repr(prompt),
            do="write a placeholder into it",
        )
    ids, places = _tokens(text, tokenizer)
    spans = tuple(_span(slot, start, stop, places, prompt) for slot, start, stop in ranges)
    if len(ids) > max_tokens:
        lost = [span.concept for span in spans if span.start + span.length > max_tokens - 1]
        raise DataError(
            f"the prompt has {len(ids)} tokens, the model reads {max_tokens}: "
            + (f"{', '.join(lost)} would be cut off" if lost else "its end would be cut off"),
            where=repr(prompt[:60]),
            do="shorten it",
        )
    return Prompt(text, ids, spans)


def substitute(text: CompactText, prompts: Sequence[Prompt], concepts: Iterable[Concept]) -> CompactText:
    """Put the vectors that live behind the text encoder into its features; training and inference both call this.

    The given features are not written to: they may come from a cache. Vectors that live before the encoder are in
    them already.

    Args:
        text: Features of the rewritten prompts, in the same order.
        prompts: Say where.
        concepts: Say what.

    Returns:
        New features, of the same lengths, in which the vectors are part of the graph.

    Raises:
        ShapeError: Features that were not made from these prompts, or vectors of another width.
        DataError: A prompt names a concept that is not given.
    """
    if len(text.lengths) != len(prompts):
        raise ShapeError("prompts of these features", expected=(len(text.lengths),), actual=(len(prompts),))
    for number, (length, prompt) in enumerate(zip(text.lengths, prompts, strict=True)):
        if length != len(prompt.ids):
            raise ShapeError(
                f"the features of prompt {number}",
                expected=(len(prompt.ids), "width"),
                actual=(length, text.features.shape[-1]),
                where=repr(prompt.text),
                do="encode the rewritten text, and change it no more: cut, join or extend captions before rewriting",
            )
    known = _by_name(concepts)
    rows = [
        replace_rows(features, prompt.spans, known, space="t5-output")
        for features, prompt in zip(text.split(), prompts, strict=True)
    ]
    return CompactText.join(rows)


def replace_rows(rows: Tensor, spans: Iterable[Span], concepts: dict[str, Concept], *, space: Space) -> Tensor:
    """One prompt's rows with vectors of one space in their places, out of place.

    Args:
        rows: (n, C).
        spans: In order.
        concepts: By name.
        space: Spans of the other space are left alone.

    Returns:
        (n, C), in the type of `rows`.
    """
    pieces, end = [], 0
    for span in spans:
        if span.space != space:
            continue
        if span.concept not in concepts:
            raise DataError(f"the prompt names {span.concept}, which is not given", do="give the concept, or reload it")
        vectors = concepts[span.concept].vectors
        expected = (span.length, rows.shape[-1])
        if tuple(vectors.shape) != expected:
            raise ShapeError(f"the vectors of {span.concept}", expected=expected, actual=tuple(vectors.shape))
        pieces += [rows[end : span.start], vectors.to(rows)]
        end = span.start + span.length
    return torch.cat([*pieces, rows[end:]]) if pieces else rows


def _by_name(concepts: Iterable[Any]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for concept in concepts:
        if concept.name in named:
            raise ConfigError(f"two concepts are named {concept.name}", do="give each a name of its own")
        named[concept.name] = concept
    return named


def _filling(slot: Slot, tokenizer: Any) -> str:
    """The carrier, as often as it takes."""
    ids, places = _tokens(slot.carrier, tokenizer)
    if getattr(tokenizer, "unk_token_id", None) in ids:
        raise DataError(
            f"the text encoder does not know the carrier {slot.carrier!r}", where=slot.name, do="take another word"
        )
    num_tokens = sum(stop > start for start, stop in places)
    if num_tokens == 0 or slot.num_vectors % num_tokens:
        raise DataError(
            f"the carrier {slot.carrier!r} has {num_tokens} tokens: it cannot fill {slot.num_vectors} positions",
            where=slot.name,
            do=f"take {num_tokens} vectors, or a multiple, or a carrier of one token" if num_tokens else "take a word",
        )
    return " ".join([slot.carrier] * (slot.num_vectors // num_tokens))


def _tokens(text: str, tokenizer: Any) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
    """Tokens, and the characters that each comes from, without blanks; none of an end token."""
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError("the tokenizer does not say where its tokens come from", do="use a fast one (AutoTokenizer)")
    encoding = tokenizer(text, return_offsets_mapping=True, verbose=False)
    places = []
    for start, stop in encoding["offset_mapping"]:
        piece = text[start:stop]
        places.append((start + len(piece) - len(piece.lstrip()), stop - len(piece) + len(piece.rstrip())))
    return tuple(encoding["input_ids"]), places


def _span(slot: Slot, start: int, stop: int, places: list[tuple[int, int]], prompt: str) -> Span:
    """The positions that come from a range of characters, which must be theirs alone."""
    found = [number for number, (first, last) in enumerate(places) if first < last and first < stop and last > start]
    whole = bool(found) and places[found[0]][0] == start and places[found[-1]][1] == stop
    if not whole or len(found) != slot.num_vectors or found[-1] - found[0] + 1 != len(found):
        raise DataError(
            f"{slot.name} does not fill its {slot.num_vectors} positions: {slot.carrier!r} runs into the text round it",
            where=repr(prompt),
            do=f"put a blank before and behind {slot.name}, or take another carrier",
        )
    return Span(slot.name, found[0], len(found), slot.space)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
