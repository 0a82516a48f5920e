"""The frozen models that a directory holds: transformer, image tokenizer and text encoder, each loaded when needed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from frostline.errors import ConfigError
from frostline.regions import freeze_
from frostline.systems.ti.config import TiSystemConfig
from frostline.systems.ti.infinity.checkpoints import load_tokenizer, load_transformer
from frostline.systems.ti.infinity.quantizer import MultiScaleBSQ
from frostline.systems.ti.infinity.schedule import Schedule, nearest_ratio, published_schedule
from frostline.systems.ti.infinity.sizes import TOKENIZERS, TRANSFORMERS, InfinityConfig, TokenizerConfig
from frostline.systems.ti.infinity.tokenizer import ImageTokenizer
from frostline.systems.ti.infinity.transformer import Infinity
from frostline.systems.ti.nano import NANO_DIRECTORY, TEXT_ENCODER
from frostline.systems.ti.text_encoder import TextEncoder, load_text_encoder

_WEIGHTS = (".safetensors", ".pth", ".pt", ".bin")
_TOKENIZER_OF = {"infinity-2b": "d32", "infinity-8b": "d56-patchify", "infinity-125m": "d16"}
_TOKENIZER_WORDS = ("vae", "tokenizer")
_ENCODER_WORDS = (TEXT_ENCODER, "t5")
_SETTINGS = "config.json"
_BLOCK_BYTES, _NUM_BLOCKS = 1 << 20, 16
_LAYOUT = "put transformer, image tokenizer (vae) and text encoder into it, or name them: --system.transformer ..."


@dataclass(frozen=True)
class ImageModel:
    """Where the frozen models lie, and how large they are.

    Attributes:
        name: What the directory is called.
        transformer_path: A file or a folder of shards.
        transformer_config: Its size.
        tokenizer_path: A file.
        tokenizer_config: Its size.
        text_encoder_name: A directory, or a name on the hub.
        text_encoder_dtype: Of its frozen weights.
        schedule: The grids of a picture.
        judge_path: The classifier that ships with nano; None elsewhere.
    """

    name: str
    transformer_path: Path
    transformer_config: InfinityConfig
    tokenizer_path: Path
    tokenizer_config: TokenizerConfig
    text_encoder_name: str
    text_encoder_dtype: torch.dtype
    schedule: Schedule
    judge_path: Path | None = None

    @property
    def quantizer(self) -> MultiScaleBSQ:
        """Between features and bits."""
        return MultiScaleBSQ(self.transformer_config.code_bits, self.transformer_config.patchify)

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the features."""
        height, width = self.schedule.final_grid
        cells = 2 if self.transformer_config.patchify else 1
        return cells * height, cells * width

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of a picture in pixels."""
        stride = self.tokenizer_config.stride
        return stride * self.grid[0], stride * self.grid[1]

    @property
    def identity(self) -> str:
        """Name and digest of the transformer, for the concepts that are trained for it."""
        return f"{self.name}@{_digest(self.transformer_path)[:12]}"

    @property
    def tokenizer_identity(self) -> str:
        """Changes whenever the tokenizer's features do."""
        return f"{_digest(self.tokenizer_path)} {self.tokenizer_config}"

    def load_transformer(self, device: torch.device | str = "cpu") -> Infinity:
        """The transformer, frozen, in float32."""
        model = load_transformer(self.transformer_path, self.transformer_config, device=device).float()
        freeze_(model)
        return model

    def load_tokenizer(self, device: torch.device | str = "cpu") -> ImageTokenizer:
        """The image tokenizer, frozen, in float32."""
        model = load_tokenizer(self.tokenizer_path, self.tokenizer_config, device=device).float()
        freeze_(model)
        return model

    def load_text_encoder(self, device: torch.device | str = "cpu", *, dtype: torch.dtype | None = None) -> TextEncoder:
        """The text encoder; its weights are loaded when they are first needed.

        Args:
            device: Where it runs.
            dtype: Of its weights; `text_encoder_dtype` if left out.
        """
        return load_text_encoder(
            self.text_encoder_name,
            dtype=dtype or self.text_encoder_dtype,
            device=device,
            max_tokens=self.transformer_config.max_text_tokens,
        )


class LazyTokenizer:
    """The image tokenizer, loaded when it is first needed, and let go on request.

    Args:
        image_model: Where it lies.
        device: Where it runs.
    """

    def __init__(self, image_model: ImageModel, device: torch.device | str = "cpu") -> None:
        self._image_model, self._device = image_model, device
        self._model: ImageTokenizer | None = None

    @property
    def model(self) -> ImageTokenizer:
        """The frozen tokenizer."""
        if self._model is None:
            self._model = self._image_model.load_tokenizer(self._device)
        return self._model

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are held."""
        return self._model is not None

    def release_(self) -> None:
        """Let go of the weights; they are loaded again if they are needed."""
        self._model = None


def find_image_model(system: TiSystemConfig) -> ImageModel:
    """Look what a directory holds; no weights are read.

    A ``config.json`` as nano's says the sizes: ``transformer``, ``tokenizer`` and ``grids``. Without one the models
    are the published ones: ``infinity_2b_reg.pth`` or another, or a folder of shards, its tokenizer
    ``infinity_vae_...pth``, and a folder that `T5EncoderModel.from_pretrained` reads.

    Raises:
        ConfigError: A part is missing or there are several of it, or its size is not known.
    """
    is_nano = system.model == "nano"
    folder = NANO_DIRECTORY if is_nano else Path(system.model).expanduser()
    if not folder.is_dir():
        raise ConfigError("no such directory", where=f"--system.model {system.model}", do=f"give nano, or: {_LAYOUT}")
    tokenizer = _part(folder, system.image_tokenizer, "image tokenizer", _is_tokenizer)
    transformer = _part(folder, system.transformer, "transformer", _is_transformer)
    settings = _settings(folder)
    if settings:
        transformer_config, tokenizer_config, schedule = _described(settings, folder)
    else:
        size = system.size or _size_of(transformer)
        if size not in TRANSFORMERS:
            raise ConfigError(
                f"the size {size!r} is not known", where="--system.size", do=f"take one of {', '.join(TRANSFORMERS)}"
            )
        transformer_config, tokenizer_config = TRANSFORMERS[size], TOKENIZERS[_TOKENIZER_OF[size]]
        schedule = published_schedule(system.pixels, nearest_ratio(round(1000 * system.ratio), 1000))
    judge = folder / "judge.safetensors"
    return ImageModel(
        name="nano" if is_nano else transformer.stem,
        transformer_path=transformer,
        transformer_config=transformer_config,
        tokenizer_path=tokenizer,
        tokenizer_config=tokenizer_config,
        text_encoder_name=_text_encoder(folder, system.text_encoder),
        text_encoder_dtype=torch.float32 if settings else torch.float16,
        schedule=schedule,
        judge_path=judge if judge.is_file() else None,
    )


def _described(settings: dict[str, Any], folder: Path) -> tuple[InfinityConfig, TokenizerConfig, Schedule]:
    try:
        tokenizer = dict(settings["tokenizer"])
        tokenizer["channel_multiples"] = tuple(tokenizer["channel_multiples"])
        grids = tuple((int(height), int(width)) for height, width in settings["grids"])
        return InfinityConfig(**settings["transformer"]), TokenizerConfig(**tokenizer), Schedule(grids)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the sizes cannot be read: {type(error).__name__} {error}", where=str(folder / _SETTINGS)
        ) from None


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / _SETTINGS
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"the sizes cannot be read: {error}", where=str(path)) from None
    return settings if isinstance(settings, dict) and "transformer" in settings else {}


def _part(folder: Path, given: str, what: str, belongs: Callable[[Path], bool]) -> Path:
    if given:
        if not (folder / given).exists():
            raise ConfigError(f"there is no {given}", where=str(folder), do=f"name the {what} in it")
        return folder / given
    found = [path for path in sorted(folder.iterdir()) if belongs(path)]
    if len(found) != 1:
        names = ", ".join(path.name for path in found)
        key = f"--system.{what.replace(' ', '-')}"
        raise ConfigError(
            f"the directory has {'several files' if found else 'nothing'} for the {what}{': ' * bool(found)}{names}",
            where=str(folder),
            do=f"give {key}" if found else _LAYOUT,
        )
    return found[0]


def _is_tokenizer(path: Path) -> bool:
    return path.suffix in _WEIGHTS and any(word in path.name.lower() for word in _TOKENIZER_WORDS)


def _is_transformer(path: Path) -> bool:
    is_weights = path.suffix in _WEIGHTS or (path.is_dir() and any(path.glob("*.index.json")))
    named = any(word in path.name.lower() for word in ("infinity", "transformer"))
    return is_weights and named and not _is_tokenizer(path)


def _size_of(transformer: Path) -> str:
    name = transformer.name.lower()
    found = [size for size in TRANSFORMERS if size.removeprefix("infinity-") in name]
    if len(found) != 1:
        raise ConfigError(
            f"the name {transformer.name} does not say the transformer's size",
            where=str(transformer.parent),
            do=f"give --system.size, one of {', '.join(TRANSFORMERS)}",
        )
    return found[0]


def _text_encoder(folder: Path, given: str) -> str:
    if given:
        return str(folder / given) if (folder / given).is_dir() else given
    found = [
        path
        for path in sorted(folder.iterdir())
        if (path / _SETTINGS).is_file() and any(word in path.name.lower() for word in _ENCODER_WORDS)
    ]
    if len(found) != 1:
        raise ConfigError(
            f"the directory has {len(found) or 'no'} folders for the text encoder",
            where=str(folder),
            do="give --system.text-encoder, a folder in it or a name on the hub such as google/flan-t5-xl",
        )
    return str(found[0])


def _digest(path: Path) -> str:
    """Of names, sizes and samples of a model's files, without reading gigabytes."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if not file.is_file():
            continue
        size = file.stat().st_size
        digest.update(f"{file.name if path.is_dir() else ''} {size} ".encode())
        with file.open("rb") as content:
            for number in range(_NUM_BLOCKS + 1):
                content.seek(number * max(0, size - _BLOCK_BYTES) // _NUM_BLOCKS)
                digest.update(content.read(_BLOCK_BYTES))
    return digest.hexdigest()


def shapes_of(system: TiSystemConfig) -> tuple[InfinityConfig, Schedule]:
    """The sizes alone, for bytes: of a directory, or of a published transformer by its name, without any file.

    Raises:
        ConfigError: Neither.
    """
    if system.model in TRANSFORMERS:
        return TRANSFORMERS[system.model], published_schedule(
            system.pixels, nearest_ratio(round(1000 * system.ratio), 1000)
        )
    model = find_image_model(system)
    return model.transformer_config, model.schedule
