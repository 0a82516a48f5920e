"""A small image model on disk, as a directory of a published one lies there, and configurations for it."""

import json
from dataclasses import asdict, replace

import torch
from safetensors.torch import save_file
from transformers import T5Config, T5EncoderModel

from frostline.systems.ti.config import (
    ConceptConfig,
    TiConfig,
    TiDataConfig,
    TiMemoryConfig,
    TiSystemConfig,
    TiTrainingConfig,
    ValidationConfig,
)
from frostline.systems.ti.infinity.sizes import InfinityConfig, TokenizerConfig
from frostline.systems.ti.infinity.tokenizer import ImageTokenizer
from frostline.systems.ti.infinity.transformer import Infinity
from frostline.systems.ti.nano import text_encoder_config, text_tokenizer
from frostline.training import Group

ALONE = Group(torch.device("cpu"))
GRIDS = ((1, 1), (2, 2), (4, 4))
TRANSFORMER = InfinityConfig(
    depth=2,
    width=32,
    num_heads=2,
    text_width=32,
    code_bits=6,
    max_text_tokens=32,
    mlp_ratio=8.0,
    cross_attention="float32",
)
TOKENIZER = TokenizerConfig(code_bits=6, base_channels=24, channel_multiples=(1, 1), num_res_blocks=1)


def write_model(directory, *, layout="safetensors"):
    """Small models of initial weights in which every part matters; layouts: safetensors, pth, shards."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer, tokenizer = Infinity(TRANSFORMER), ImageTokenizer(TOKENIZER)
        with torch.no_grad():
            for parameter in transformer.parameters():
                parameter.normal_(std=0.3 if parameter.dim() < 2 else parameter.size(-1) ** -0.5)
        settings = {**text_encoder_config().to_dict(), "d_model": 32, "d_kv": 16, "d_ff": 32, "num_heads": 2}
        encoder = T5EncoderModel(T5Config(**settings))
    directory.mkdir(parents=True, exist_ok=True)
    sizes = {"transformer": asdict(TRANSFORMER), "tokenizer": asdict(TOKENIZER), "grids": GRIDS}
    (directory / "config.json").write_text(json.dumps(sizes))
    encoder.save_pretrained(directory / "text_encoder")
    text_tokenizer().save_pretrained(directory / "text_encoder")
    state = transformer.state_dict()
    if layout == "shards":
        write_shards(directory / "infinity_tiny_weights", state)
    elif layout == "pth":
        torch.save({"trainer": {"gpt_fsdp": state}}, directory / "infinity_tiny_reg.pth")
    else:
        save_file(state, directory / "transformer.safetensors")
    if layout == "safetensors":
        save_file(
            {key: tensor.clone() for key, tensor in tokenizer.state_dict().items()}, directory / "tokenizer.safetensors"
        )
    else:
        torch.save({"vae": tokenizer.state_dict()}, directory / "infinity_vae_d6.pth")
    return directory


def write_shards(folder, state):
    """Two shards and their index."""
    folder.mkdir()
    names, places = list(state), {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"model-{number + 1:05d}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def small_config(directory, *, data=None, memory=None, training=None, concept=None, system=None):
    """Three pictures of a star, steps of six; keys as keywords of their section."""
    steps = {"num_steps": 4, "batch_size": 6, "learning_rate": 0.3, "log_every": 1, "checkpoint_every": 2}
    concepts = ConceptConfig(**(concept or {}))
    settings = {"validation": ValidationConfig(every=0), "concept": concepts, **(system or {})}
    return TiConfig(
        data=replace(TiDataConfig(num_pictures=3), **(data or {})),
        memory=TiMemoryConfig(**(memory or {})),
        training=TiTrainingConfig(**(steps | (training or {}))),
        system=TiSystemConfig(model=str(directory), **settings),
    )
