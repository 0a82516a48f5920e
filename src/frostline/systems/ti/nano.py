"""nano: an Infinity of 1.3 M parameters for 32-pixel things, with tokenizer, text encoder and judge.

The classes are those of the released models, with small numbers, and transformers' own T5: everything that holds for
nano's concepts, files and memory holds for theirs. `pretrain.py` made the weights; its captions call half of the
shapes "thing", so there are concepts to be learned that nano can draw and has no word for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import PreTrainedTokenizerFast, T5Config

from frostline.scenes import NAMED_THINGS, THING_BACKGROUNDS, THING_COLOURS, THING_WORD
from frostline.systems.ti.infinity.generation import Sampling
from frostline.systems.ti.infinity.schedule import Schedule, square_schedule
from frostline.systems.ti.infinity.sizes import InfinityConfig, TokenizerConfig
from frostline.systems.ti.infinity.tokenizer import ImageTokenizer
from frostline.systems.ti.infinity.transformer import Infinity
from frostline.systems.ti.judge import Judge

NANO_DIRECTORY = Path(__file__).parent / "weights"
TEXT_ENCODER = "text_encoder"
"""The folder in it that transformers loads text encoder and text tokenizer from."""

NANO_IMAGE_SIZE = 32
NANO_SCHEDULE: Schedule = square_schedule(1, 2, 4, 8)
NANO_TOKENIZER = TokenizerConfig(code_bits=12, base_channels=24, channel_multiples=(1, 2, 2), num_res_blocks=1)
NANO_TRANSFORMER = InfinityConfig(
    depth=4, width=128, num_heads=4, text_width=128, code_bits=12, max_text_tokens=64, cross_attention="float32"
)

_Model = TypeVar("_Model", bound=nn.Module)
NANO_SAMPLING = Sampling(guidance=2.5, temperature=0.7)

_SPECIAL = ("<pad>", "</s>", "<unk>")
_SCENE = (*NAMED_THINGS, *THING_COLOURS, *THING_BACKGROUNDS, THING_WORD)
# Of the usual templates, so that none of their words is unknown.
_EVERYDAY = (
    "a an the of in on my one and with , . - photo picture image rendering rendition depiction painting drawing close "
    "up cropped clean dirty cool good nice small weird large big bright style"
)


def nano_transformer(directory: Path = NANO_DIRECTORY) -> Infinity:
    """The transformer, float32, in eval mode."""
    model = Infinity(InfinityConfig(**_settings(directory)["transformer"]))
    return _filled(model, directory / "transformer.safetensors")


def nano_image_tokenizer(directory: Path = NANO_DIRECTORY) -> ImageTokenizer:
    """The picture tokenizer, float32, in eval mode."""
    settings = _settings(directory)["tokenizer"]
    settings["channel_multiples"] = tuple(settings["channel_multiples"])
    return _filled(ImageTokenizer(TokenizerConfig(**settings)), directory / "tokenizer.safetensors")


def nano_judge(directory: Path = NANO_DIRECTORY) -> Judge:
    """The judge, float32, in eval mode."""
    return _filled(Judge(_settings(directory)["image_size"]), directory / "judge.safetensors")


def text_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with a token for each word of captions and templates; an end token follows the last one."""
    words = (*_SPECIAL, *_SCENE, *_EVERYDAY.split())
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=NANO_TRANSFORMER.max_text_tokens,
    )


def text_encoder_config() -> T5Config:
    """A T5 of two layers in the form of flan-t5: gated GELU."""
    return T5Config(
        vocab_size=len(text_tokenizer()),
        d_model=NANO_TRANSFORMER.text_width,
        d_kv=32,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=_SPECIAL.index("<pad>"),
        eos_token_id=_SPECIAL.index("</s>"),
    )


def _settings(directory: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return settings


def _filled(model: _Model, path: Path) -> _Model:
    """The float16 of the file become the float32 of the model; a missing or extra name is an error of torch's."""
    model.load_state_dict(load_file(path))
    return model.eval()
