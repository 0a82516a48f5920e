"""A frozen Florence-2: found, loaded, cut in two, and described."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import Florence2Config, Florence2ForConditionalGeneration, Florence2Processor, PreTrainedConfig
from transformers.utils import logging as hf_logging

from frostline.errors import ConfigError
from frostline.records import Component
from frostline.regions import freeze_
from frostline.systems.semcom.nano import NANO_DIRECTORY

CutPoint = Literal["vision_tower", "image_proj_norm"]
TASKS = {"caption": "<CAPTION>", "detection": "<OD>"}
"""Florence-2's task tokens by the names that configurations use."""

_MODELS = "give nano, a directory written by save_pretrained, or florence-community/Florence-2-base"
_RELEASED = {"base": "Florence-2-base", "large": "Florence-2-large"}


@dataclass(frozen=True)
class Backbone:
    """The frozen model and its processor.

    Attributes:
        model: The whole model; every part of it is frozen.
        processor: Tokenizer, prompts, image processor and parser; None where only shapes matter.
        prompt_ids: Token ids of each task's prompt.
    """

    model: Florence2ForConditionalGeneration
    processor: Florence2Processor | None
    prompt_ids: Mapping[str, tuple[int, ...]]

    @property
    def tower(self) -> nn.Module | None:
        """DaViT: pixels (B, 3, S, S) to a map (B, C, s, s); None once it was released."""
        tower: nn.Module | None = self.model.model.vision_tower
        return tower

    @property
    def projector(self) -> nn.Module:
        """Position, temporal embedding, mean token, projection and norm: (B, C, s, s) to (B, s^2 + 1, W)."""
        projector: nn.Module = self.model.model.multi_modal_projector
        return projector

    def features_shape(self, mode: CutPoint, image_size: int) -> tuple[int, int]:
        """Tokens N and width D of one picture at the cut, for square pictures of `image_size` pixels.

        Raises:
            ConfigError: The tower's strides do not divide the size.
        """
        vision = self.model.config.vision_config
        stride = 1
        for step in vision.patch_stride:
            stride *= step
        if image_size % stride:
            raise ConfigError(f"pictures of {image_size} pixels cannot be cut into patches of {stride}")
        num_tokens = (image_size // stride) ** 2
        if mode == "vision_tower":
            return num_tokens, vision.embed_dim[-1]
        return num_tokens + 1, vision.projection_dim

    @property
    def image_size(self) -> int:
        """Height and width the processor brings every picture to."""
        return int(self.require_processor().image_processor.size["height"])

    def require_processor(self) -> Florence2Processor:
        """The processor of a backbone that was loaded with one."""
        assert self.processor is not None, "a backbone of shapes alone has no processor"
        return self.processor

    def components(self) -> tuple[Component, ...]:
        """The nine frozen components of the published design, with what they are in transformers' own classes."""
        projector, language_model = self.projector, self.model.model.language_model
        parts: tuple[tuple[str, object, str], ...] = (
            ("vision_tower", self.tower, ""),
            ("image_pos_embed", projector.image_position_embed, "image_position_embed"),
            ("visual_temporal_embed", projector.visual_temporal_embed, "a buffer"),
            ("image_feature_source", None, "mean + all tokens, fixed"),
            ("image_projection", projector.image_projection, ""),
            ("image_proj_norm", projector.image_proj_norm, ""),
            ("language_model", language_model, "its embedding is the head"),
            ("processor", self.processor, "pictures and prompts"),
            ("tokenizer", self.processor and self.processor.tokenizer, f"{self.vocabulary} tokens"),
        )
        return tuple(component(name, part, note) for name, part, note in parts)

    @property
    def max_answer_tokens(self) -> int:
        """Positions of the decoder."""
        return int(self.model.config.text_config.max_position_embeddings)

    @property
    def vocabulary(self) -> int:
        """Rows of the token embedding."""
        return int(self.model.config.text_config.vocab_size)


def load_backbone(name: str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Backbone:
    """Load a frozen Florence-2: ``nano``, a local directory, or a name on the hub.

    Args:
        name: nano ships with the package; everything else goes through `from_pretrained`.
        dtype: Of the frozen weights.
        device: Where the model runs.

    Raises:
        ConfigError: No such model, or not a Florence-2.
    """
    path = str(NANO_DIRECTORY) if name == "nano" else str(Path(name).expanduser()) if name.startswith("~") else name
    if path.startswith((".", "/")) and not Path(path).is_dir():
        raise ConfigError("no such directory", where=f"--system.model {name}", do=_MODELS)
    try:
        kind = PreTrainedConfig.get_config_dict(path)[0].get("model_type")
        if kind != "florence2":
            raise ValueError(f"its model_type is {kind!r}")
        processor = Florence2Processor.from_pretrained(path)
        with _no_loading_bar():
            model, loading = Florence2ForConditionalGeneration.from_pretrained(
                path, dtype=dtype, output_loading_info=True
            )
        if loading["missing_keys"]:
            raise ValueError(f"weights are missing: {', '.join(sorted(loading['missing_keys'])[:3])} ...")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ConfigError(
            f"cannot load a Florence-2 from {name!r}: {str(error).splitlines()[0]}",
            where="--system.model",
            do=_MODELS,
        ) from None
    freeze_(model.to(device))
    prompts = processor.task_prompts_without_inputs
    prompt_ids = {task: tuple(processor.tokenizer(prompts[task]).input_ids) for task in TASKS.values()}
    return Backbone(model, processor, prompt_ids)


def shape_model(name: str) -> Florence2ForConditionalGeneration:
    """A model of the right shapes with initial weights, for byte counts; needs no download for released models.

    Raises:
        ConfigError: No configuration is known under this name.
    """
    return Florence2ForConditionalGeneration(_shape_config(name))


def shape_backbone(model: Florence2ForConditionalGeneration) -> Backbone:
    """A backbone without a processor; its caption prompt has the 8 tokens of Florence-2's tokenizer."""
    return Backbone(model, None, {TASKS["caption"]: (0,) * 8})


def shape_image_size(name: str) -> int:
    """Height and width of the pictures a model takes; 768 for the released ones."""
    if name == "nano" or Path(name).is_dir():
        processor = Florence2Processor.from_pretrained(NANO_DIRECTORY if name == "nano" else name)
        return int(processor.image_processor.size["height"])
    return 768


def _shape_config(name: str) -> Florence2Config:
    if name == "nano" or Path(name).is_dir():
        path = NANO_DIRECTORY if name == "nano" else Path(name)
        config: Florence2Config = Florence2Config.from_pretrained(path)
        return config
    for size, released in _RELEASED.items():
        if name.rsplit("/", 1)[-1].removesuffix("-ft") == released:
            text = (Path(__file__).parent / "florence2" / f"{size}.json").read_text(encoding="utf-8")
            settings: dict[str, Any] = json.loads(text)
            return Florence2Config(**settings)
    raise ConfigError(
        f"the shapes of {name!r} are not known",
        where="--system.model",
        do="give nano, a local directory, or Florence-2-base or -large",
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


def component(name: str, part: object, note: str) -> Component:
    """A part of a model for the run's header; one that is not a module has no parameters and no mode."""
    if not isinstance(part, nn.Module):
        return Component(name=name, num_parameters=0, num_trainable=0, mode="", note=note)
    parameters = list(part.parameters())
    return Component(
        name=name,
        num_parameters=sum(p.numel() for p in parameters),
        num_trainable=sum(p.numel() for p in parameters if p.requires_grad),
        mode="train" if part.training else "eval",
        note=note,
    )
