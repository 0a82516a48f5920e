"""A T5 of two layers with its tokenizer, and text as the published scripts encode it."""

import functools

import torch
from torch.nn import functional as F
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from frostline.systems.ti.text_encoder import TextEncoder
from ti_stand_in import WIDTH

WORDS = ("a", "dog", "photo", "of", "cat", "tea", "on", "grass", "red", "the", "good", "painting", "style", "in", "toy")
PIECES = ("s", "pot", ",", ".", *"abcdefghijklmnopqrstuvwxyz0123456789<>-'")


@functools.cache
def tokenizer():
    """Words of one token, ``teapot`` of two, and letters for all else."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -8.0)]
    pieces += [(f"▁{word}", -1.0) for word in WORDS]
    pieces += [(piece, -6.0) for piece in dict.fromkeys(PIECES)]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


@functools.cache
def t5():
    torch_state = torch.get_rng_state()
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer()), d_model=WIDTH, d_kv=16, d_ff=128, num_layers=2, num_heads=4, pad_token_id=0,
        eos_token_id=1,
    )  # fmt: skip
    model = T5EncoderModel(config)
    torch.set_rng_state(torch_state)
    return model


def encoder(**settings):
    return TextEncoder.of(t5(), tokenizer(), **settings)


def saved_encoder(directory):
    """As `save_pretrained` leaves it."""
    t5().save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return directory


def official(captions, max_length=32):
    """Text as the published scripts encode it."""
    tokens = tokenizer()(
        text=list(captions), max_length=max_length, padding="max_length", truncation=True, return_tensors="pt"
    )
    mask = tokens.attention_mask
    with torch.no_grad():
        features = t5().eval()(input_ids=tokens.input_ids, attention_mask=mask)["last_hidden_state"].float()
    lens = mask.sum(dim=-1).tolist()
    ends = F.pad(mask.sum(dim=-1).to(dtype=torch.int32).cumsum_(0), (1, 0))
    kv_compact = torch.cat([feature[:length] for feature, length in zip(features.unbind(0), lens, strict=True)])
    return kv_compact, lens, ends, max(lens)
