"""The frozen T5 encoder: read once a prompt, cached on disk, and let go."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoTokenizer, T5EncoderModel
from transformers.utils import cached_file
from transformers.utils import logging as hf_logging

from frostline.errors import ConfigError, StepError
from frostline.ops import FeatureCache, cache_key
from frostline.regions import freeze_
from frostline.systems.ti.concept import Concept
from frostline.systems.ti.infinity.text import CompactText
from frostline.systems.ti.prompts import MAX_TOKENS, Prompt, Slot, Space, replace_rows, rewrite

CARRIER_TEMPLATE = "a photo of a {}"
"""The prompt in which a carrier's rows are read."""

_MODELS = "give a directory written by save_pretrained, or a name on the hub such as google/flan-t5-xl"
_BLOCK_BYTES = 1 << 20
_NUM_BLOCKS = 16


class TextEncoder:
    """T5 with its tokenizer; the weights are loaded when they are first needed, and can be let go.

    Prompts pass one by one and without padding: a padded row of 512 tokens costs 30 times the work and gives the
    same features. Features are float32, as the published code has them.

    Args:
        tokenizer: A fast one of transformers.
        load: Makes the model; called once, and again after `release_`.
        width: Of its features.
        identity: Changes whenever the features do.
        max_tokens: Longest prompt, end token included.
    """

    def __init__(
        self, tokenizer: Any, load: Callable[[], nn.Module], *, width: int, identity: str, max_tokens: int = MAX_TOKENS
    ) -> None:
        self.tokenizer, self.width, self.identity, self.max_tokens = tokenizer, width, identity, max_tokens
        self._load = load
        self._model: nn.Module | None = None

    @classmethod
    def of(cls, model: Any, tokenizer: Any, *, max_tokens: int = MAX_TOKENS) -> TextEncoder:
        """A model that is in memory already, as in the published scripts; it is frozen.

        Its weights are digested to identify it. Releasing it is up to whoever else holds it.
        """
        identity = cache_key(model, str(model.config.to_dict()), str(sorted(tokenizer.get_vocab().items())))
        return cls(tokenizer, lambda: model, width=model.config.d_model, identity=identity, max_tokens=max_tokens)

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are held."""
        return self._model is not None

    @property
    def model(self) -> nn.Module:
        """The frozen encoder."""
        if self._model is None:
            self._model = self._load()
            freeze_(self._model)
        return self._model

    def release_(self) -> None:
        """Let go of the weights, once every prompt is cached; they are loaded again if they are needed."""
        self._model = None

    def rewrite(self, prompt: str, concepts: Iterable[Slot | Concept], *, required: bool = True) -> Prompt:
        """See `prompts.rewrite`."""
        return rewrite(prompt, self.tokenizer, concepts, max_tokens=self.max_tokens, required=required)

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt]) -> CompactText:
        """Features of rewritten prompts, in which carriers stand for concepts.

        The encoder lies before everything that trains, so `no_grad` saves nothing; it is insurance.

        Raises:
            StepError: A prompt names a concept that lives before the encoder: its gradient would be cut off.
        """
        _refuse_inner(prompts, "encode_through")
        rows = [self._embed(prompt) for prompt in prompts]
        with torch.autocast(rows[0].device.type, enabled=False):  # else what is cached depends on who asks first
            return CompactText.join([self._features(row[None], None)[0] for row in rows])

    def encode_through(self, prompts: Sequence[Prompt], concepts: Iterable[Concept]) -> CompactText:
        """Features of prompts whose concepts live before the encoder, which is part of the graph.

        Memory: the encoder's activations, until backward; its weights must stay.

        Args:
            prompts: Padded to the longest of them.
            concepts: Those that live before the encoder; others are left to `substitute`.
        """
        named = {concept.name: concept for concept in concepts}
        rows = [replace_rows(self._embed(prompt), prompt.spans, named, space="t5-input") for prompt in prompts]
        mask = pad_sequence([torch.ones(len(row), dtype=torch.long, device=row.device) for row in rows], True)
        features = self._features(pad_sequence(rows, batch_first=True), mask)
        return CompactText.join([feature[: len(row)] for feature, row in zip(features, rows, strict=True)])

    def new_concept(
        self,
        name: str,
        *,
        carrier: str,
        num_vectors: int = 1,
        space: Space = "t5-output",
        template: str = CARRIER_TEMPLATE,
    ) -> Concept:
        """A concept that starts as its carrier: the rows that the carrier has in a prompt.

        Args:
            name: The placeholder.
            carrier: The word to start from.
            num_vectors: Positions; a multiple of the carrier's tokens.
            space: Where the vectors live.
            template: The prompt, with ``{}`` for the carrier.
        """
        prompt = self.rewrite(template.format(name), [Slot(name, carrier, num_vectors, space)])
        span = prompt.spans[0]
        with torch.no_grad():
            rows = self._embed(prompt)
            if space == "t5-output":
                rows = self._features(rows[None], None)[0]
        return Concept(name, rows[span.start : span.start + span.length], carrier=carrier, space=space)

    def _embed(self, prompt: Prompt) -> Tensor:
        table: nn.Module = self.model.get_input_embeddings()  # type: ignore[operator]
        rows: Tensor = table(torch.tensor(prompt.ids, device=next(self.model.parameters()).device))
        return rows

    def _features(self, rows: Tensor, mask: Tensor | None) -> Tensor:
        features: Tensor = self.model(inputs_embeds=rows, attention_mask=mask).last_hidden_state
        return features.float()


class PromptFeatures:
    """Features of a fixed list of prompts, each encoded once and kept; concepts go into what `fetch` returns.

    Args:
        encoder: Asked for prompts that are missing.
        prompts: Rewritten. Their number and texts are part of the file's name.
        directory: Where the file goes; None keeps the features in host memory.

    Attributes:
        prompts: As given.

    Raises:
        StepError: A prompt names a concept that lives before the encoder, which cannot be cached.
    """

    def __init__(self, encoder: TextEncoder, prompts: Sequence[Prompt], *, directory: Path | None = None) -> None:
        _refuse_inner(prompts, "encode_through at every step")
        self.prompts, self._encoder = tuple(prompts), encoder
        key = cache_key(encoder.identity, *(repr(prompt.ids) for prompt in prompts))
        self._longest = max(len(prompt.ids) for prompt in prompts)
        self._cache = FeatureCache(
            len(prompts),
            (self._longest, encoder.width),
            dtype=torch.float32,
            key=key,
            path=None if directory is None else directory / f"prompts-{key[:12]}.safetensors",
        )

    def fetch(self, numbers: Sequence[int]) -> CompactText:
        """Features of some prompts, in host memory; the encoder runs for those that are missing.

        Args:
            numbers: In the list of prompts.
        """
        rows = self._cache.fetch(
            torch.tensor(numbers), lambda missing: self._encode([numbers[at] for at in missing.tolist()])
        )
        return CompactText.join([rows[at, : len(self.prompts[number].ids)] for at, number in enumerate(numbers)])

    def fill_(self) -> None:
        """Encode every prompt that is missing, one at a time, and let the encoder go."""
        for number in range(len(self.prompts)):
            self.fetch([number])
        self._encoder.release_()

    def _encode(self, numbers: Sequence[int]) -> Tensor:
        features = self._encoder.encode([self.prompts[number] for number in numbers])
        padded = torch.zeros(len(numbers), self._longest, self._encoder.width)
        for row, feature in zip(padded, features.split(), strict=True):
            row[: len(feature)] = feature
        return padded


def load_text_encoder(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    max_tokens: int = MAX_TOKENS,
) -> TextEncoder:
    """A T5 encoder from a local directory or the hub; only the tokenizer is read now.

    Args:
        name: ``google/flan-t5-xl`` is the released models' encoder, in float16 there.
        dtype: Of the frozen weights.
        device: Where it runs.
        max_tokens: Longest prompt, end token included.

    Raises:
        ConfigError: No such model, or not a T5.
    """
    place = str(Path(name).expanduser()) if name.startswith("~") else name
    if place.startswith((".", "/")) and not Path(place).is_dir():
        raise ConfigError("no such directory", where=name, do=_MODELS)
    try:
        config = AutoConfig.from_pretrained(place)
        if config.model_type != "t5":
            raise ValueError(f"its model_type is {config.model_type!r}")
        tokenizer = AutoTokenizer.from_pretrained(place)
        identity = _identity(place)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _cannot_load(name, error) from None

    def load() -> nn.Module:
        try:
            with _no_loading_bar():
                model, loading = T5EncoderModel.from_pretrained(place, dtype=dtype, output_loading_info=True)
            if loading["missing_keys"]:
                raise ValueError(f"weights are missing: {', '.join(sorted(loading['missing_keys'])[:3])} ...")
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise _cannot_load(name, error) from None
        frozen: nn.Module = model.to(device)
        return frozen

    return TextEncoder(
        tokenizer, load, width=config.d_model, identity=cache_key(identity, str(dtype)), max_tokens=max_tokens
    )


@contextmanager
def _no_loading_bar() -> Iterator[None]:
    """Transformers draws a bar even where loading takes milliseconds."""
    drawn = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            hf_logging.enable_progress_bar()


def _cannot_load(name: str, error: Exception) -> ConfigError:
    return ConfigError(f"cannot load a T5 encoder from {name!r}: {str(error).splitlines()[0]}", where=name, do=_MODELS)


def _identity(place: str) -> str:
    """What a model's features depend on, without reading gigabytes: names, sizes and samples of its files."""
    folder = Path(place)
    if not folder.is_dir():  # the hub keeps each commit in a folder of its name
        return f"{place}@{Path(str(cached_file(place, 'config.json'))).parent.name}"
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with file.open("rb") as content:
            for number in range(_NUM_BLOCKS + 1):
                content.seek(number * max(0, size - _BLOCK_BYTES) // _NUM_BLOCKS)
                digest.update(content.read(_BLOCK_BYTES))
    return digest.hexdigest()


def _refuse_inner(prompts: Sequence[Prompt], instead: str) -> None:
    inner = {span.concept for prompt in prompts for span in prompt.spans if span.space == "t5-input"}
    if inner:
        raise StepError(
            f"{', '.join(sorted(inner))} lives before the text encoder: features without gradients would cut it off",
            where="the text encoder",
            do=f"call {instead}",
        )
