"""Two small Florence-2 models and what runs on them, for the tests of semcom."""

from dataclasses import replace
from functools import cache

import torch
from transformers import Florence2Config, Florence2ForConditionalGeneration

from frostline.config import MemoryConfig
from frostline.regions import freeze_
from frostline.systems.semcom.backbone import Backbone, load_backbone
from frostline.systems.semcom.config import (
    SemcomConfig,
    SemcomDataConfig,
    SemcomSystemConfig,
    SemcomTrainingConfig,
)
from frostline.systems.semcom.data import Batch, Collate, SceneSource, SemcomDataset
from frostline.systems.semcom.model import SemcomModel
from frostline.systems.semcom.system import SemcomSystem
from frostline.training import Group, Sample

CPU = Group(torch.device("cpu"))
PLAIN = MemoryConfig(checkpoint="none", loss_chunk_tokens=0, upstream_chunk=0)


@cache
def nano(dtype: torch.dtype = torch.float32) -> Backbone:
    """The model that ships; shared by all tests, which must leave it as it is."""
    return load_backbone("nano", dtype=dtype)


@cache
def odd(dtype: torch.dtype = torch.float32) -> Backbone:
    """Initial weights in sizes that nothing else has: 96 pixels, stride 32, width 40 behind and 60 at the cut."""
    tokenizer = nano().require_processor().tokenizer
    vision = dict(
        embed_dim=[12, 24, 36, 60],
        num_heads=[1, 2, 3, 5],
        num_groups=[1, 2, 3, 5],
        depths=[1, 1, 2, 1],
        window_size=3,
        projection_dim=40,
        max_temporal_embeddings=3,
    )
    text = dict(
        model_type="bart",
        vocab_size=len(tokenizer),
        d_model=40,
        encoder_layers=1,
        decoder_layers=3,
        encoder_ffn_dim=72,
        decoder_ffn_dim=88,
        encoder_attention_heads=5,
        decoder_attention_heads=2,
        max_position_embeddings=80,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=None,
        init_std=0.3,  # the default gives the same token for any picture
    )
    torch.manual_seed(0)
    config = Florence2Config(vision_config=vision, text_config=text, image_token_id=tokenizer.image_token_id)
    model = Florence2ForConditionalGeneration(config).to(dtype)
    freeze_(model)
    return replace(nano(), model=model)


def scene_batch(
    num_scenes: int = 6, *, task: str = "caption", backbone: Backbone | None = None, seed: int = 0
) -> Batch:
    """Training scenes as nano sees them, at SNRs from -6 to 15 dB."""
    source = SceneSource(backbone or nano(), split="train", num_scenes=num_scenes, task=task, seed=(seed,))
    dataset = SemcomDataset(source, snr_range_db=(-6.0, 15.0), seed=(seed,))
    examples = dataset.__getitems__([Sample(index, 0) for index in range(source.num_samples)])
    return Collate(nano().require_processor().tokenizer, 128)(examples)


def small_model(
    backbone: Backbone | None = None, memory: MemoryConfig = PLAIN, *, image_size: int = 64, **system: object
) -> SemcomModel:
    """A codec with fixed initial values in the middle of a model."""
    torch.manual_seed(1)
    settings = SemcomSystemConfig(**system)  # type: ignore[arg-type]
    return SemcomModel(backbone or nano(), settings, memory, image_size=image_size)


def small_system(
    memory: MemoryConfig = PLAIN, *, batch_size: int = 8, num_scenes: int = 24, **system: object
) -> SemcomSystem:
    """A whole system on a few scenes."""
    config = SemcomConfig(
        data=SemcomDataConfig(num_scenes=num_scenes, num_test=16),
        memory=memory,
        training=SemcomTrainingConfig(batch_size=batch_size),
        system=SemcomSystemConfig(**system),  # type: ignore[arg-type]
    )
    return SemcomSystem(config, CPU)
