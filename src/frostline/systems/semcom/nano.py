"""nano: a Florence-2 of 1.5 M parameters for 64-pixel scenes, with tokenizer and processor, made from nothing.

The classes are transformers' own, so everything that holds for nano holds for the released Florence-2 models:
the split, the prompts, location tokens, the parser of detections. `pretrain.py` trains its weights.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import ByteLevelBPETokenizer
from transformers import BartTokenizer, CLIPImageProcessorPil, Florence2Config, Florence2Processor

from frostline.scenes import COLOURS, RELATIONS, SHAPES, SIZES

NANO_DIRECTORY = Path(__file__).parent / "weights"
IMAGE_SIZE = 64
NUM_LOCATIONS = 32
LOCATION_TOKENS = tuple(f"<loc_{round((i + 0.5) * 1000 / NUM_LOCATIONS)}>" for i in range(NUM_LOCATIONS))
"""The centres of 32 bins in Florence-2's unit of 1/1000 of the picture, so that its own parser reads them."""

_PROMPTS = ("What does the image describe?", "Locate the objects with category name in the image.")
# So that captions of photographs do not fall into bytes altogether.
_EVERYDAY = (
    "an the in on at of to with and by is are top up down front next near under over holding sitting standing wearing "
    "man woman boy girl child people person group dog cat bird horse street road room table chair bed couch book board "
    "sign car bus train plane boat bike food plate pizza cake ball water beach snow mountain tree grass field building "
    "window door wall clock phone black brown pink gray two three some many old young big picture cover"
)
_PARSERS = (
    "pure_text",
    "description_with_bboxes",
    "description_with_polygons",
    "polygons",
    "bboxes",
    "description_with_bboxes_or_polygons",
)
_MAX_TOKENS = 1024  # an upper bound: training ends when every word of the corpus is one token
NUM_CELLS = 16
"""Tokens of the tower: a map of 4 x 4."""

_DIMS = (32, 64, 96, 128)
_WIDTH = 96


def nano_processor() -> Florence2Processor:
    """A `Florence2Processor` whose byte-level BPE has one token for each word of scenes and bytes for all else."""
    words = [*SIZES, *COLOURS, *SHAPES, *" ".join(RELATIONS).split()]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        [*(f"a {word} a" for word in (*words, *_EVERYDAY.split())), *SHAPES, *_PROMPTS] * 2,
        vocab_size=_MAX_TOKENS,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        show_progress=False,
    )
    model = json.loads(bpe.to_str())["model"]
    tokenizer = BartTokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        extra_special_tokens={"image_token": "<image>"},
    )
    tokenizer.add_tokens(list(LOCATION_TOKENS))
    image_processor = CLIPImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        do_center_crop=False,
        resample=3,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        image_seq_length=NUM_CELLS + 1,  # their mean comes first
    )
    return Florence2Processor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        post_processor_config={
            **{kind: {} for kind in _PARSERS},
            "ocr": {"pattern": r"(.+?)<loc_(\d+)>", "area_threshold": 0.0},
            "phrase_grounding": {"banned_grounding_tokens": []},
        },
    )


def nano_config(processor: Florence2Processor) -> Florence2Config:
    """The architecture; dropout and drop-path are 0, for nano sees every scene once."""
    heads = [dim // 32 for dim in _DIMS]
    tokenizer = processor.tokenizer
    return Florence2Config(
        vision_config=dict(
            embed_dim=list(_DIMS),
            num_heads=heads,
            num_groups=heads,
            depths=[1, 1, 1, 1],
            patch_stride=[4, 2, 2, 1],
            window_size=4,
            projection_dim=_WIDTH,
            drop_path_rate=0.0,
            max_position_embeddings=16,
            max_temporal_embeddings=4,
        ),
        text_config=dict(
            model_type="bart",
            vocab_size=len(tokenizer),
            d_model=_WIDTH,
            encoder_layers=2,
            decoder_layers=2,
            encoder_ffn_dim=4 * _WIDTH,
            decoder_ffn_dim=4 * _WIDTH,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            max_position_embeddings=128,
            dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.eos_token_id,
            forced_eos_token_id=None,
        ),
        image_token_id=tokenizer.image_token_id,
    )
