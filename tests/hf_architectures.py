"""One training step of small models of every family, made from configurations; no hub is asked."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    CLIPConfig,
    CLIPModel,
    ConvNextConfig,
    ConvNextForImageClassification,
    Florence2Config,
    Florence2ForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    SwinConfig,
    SwinForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
)

from frostline.memory import Workload

VOCAB = 64


def training_step(model: nn.Module, **inputs: object) -> Workload:
    """Train mode, AdamW over what requires grad; the step returns its loss."""
    model.train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)

    def step() -> Tensor:
        loss: Tensor = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return Workload(step=step, model=model, optimizers=(optimizer,), inputs=inputs)


def tokens(*shape: int) -> Tensor:
    """Random tokens that are none of the special ones."""
    return torch.randint(4, VOCAB - 1, shape)


def gpt2() -> Workload:
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    )
    text = tokens(2, 8)
    return training_step(model, input_ids=text, labels=text)


def t5() -> Workload:
    config = T5Config(
        vocab_size=VOCAB,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        relative_attention_num_buckets=8,
        decoder_start_token_id=0,
    )
    return training_step(T5ForConditionalGeneration(config), input_ids=tokens(2, 8), labels=tokens(2, 6))


def bart() -> Workload:
    config = BartConfig(
        vocab_size=VOCAB,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        max_position_embeddings=16,
    )
    return training_step(BartForConditionalGeneration(config), input_ids=tokens(2, 8), labels=tokens(2, 6))


def bert() -> Workload:
    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    text = tokens(2, 10)
    masked = torch.zeros_like(text, dtype=torch.bool)
    masked[:, ::3] = True
    return training_step(
        BertForMaskedLM(config),
        input_ids=text.masked_fill(masked, VOCAB - 1),
        labels=text.masked_fill(~masked, -100),
    )


def llama() -> Workload:
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16,
        bos_token_id=1,
        eos_token_id=2,
    )
    text = tokens(2, 8)
    return training_step(LlamaForCausalLM(config), input_ids=text, labels=text)


def clip() -> Workload:
    config = CLIPConfig(
        text_config=dict(
            vocab_size=VOCAB,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=8,
            bos_token_id=0,
            eos_token_id=VOCAB - 1,
            pad_token_id=1,
        ),
        vision_config=dict(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
        ),
        projection_dim=16,
    )
    text = tokens(4, 8)
    text[:, -1] = VOCAB - 1  # the pooled one
    return training_step(CLIPModel(config), input_ids=text, pixel_values=torch.randn(4, 3, 16, 16), return_loss=True)


def swin() -> Workload:
    config = SwinConfig(
        image_size=32, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=4, num_labels=5
    )
    return training_step(
        SwinForImageClassification(config), pixel_values=torch.randn(4, 3, 32, 32), labels=torch.arange(4)
    )


def convnext() -> Workload:
    config = ConvNextConfig(hidden_sizes=[8, 16], depths=[2, 2], num_stages=2, drop_path_rate=0.1, num_labels=5)
    return training_step(
        ConvNextForImageClassification(config), pixel_values=torch.randn(4, 3, 32, 32), labels=torch.arange(4)
    )


def vit_mae() -> Workload:
    config = ViTMAEConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=4,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
    )
    model = ViTMAEForPreTraining(config)
    # A configuration alone leaves both tables of positions 0: all masked tokens are alike, and the decoder's queries
    # get a gradient of exactly 0. Sines and cosines are what the model is published with.
    model.decoder.initialize_weights(model.vit.embeddings.patch_embeddings.num_patches)
    model.vit.embeddings.position_embeddings.data.copy_(model.decoder.decoder_pos_embed)
    return training_step(model, pixel_values=torch.randn(2, 3, 16, 16))


def wav2vec2() -> Workload:
    config = Wav2Vec2Config(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(16, 16, 16),
        conv_stride=(5, 4, 4),
        conv_kernel=(10, 8, 4),
        num_feat_extract_layers=3,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        mask_time_prob=0.5,  # with the default no frame of so short a clip would be masked
        mask_time_length=2,
        ctc_loss_reduction="mean",
        pad_token_id=0,
    )
    return training_step(Wav2Vec2ForCTC(config), input_values=torch.randn(2, 2000), labels=tokens(2, 4))


def mamba() -> Workload:
    config = MambaConfig(
        vocab_size=VOCAB, hidden_size=16, state_size=4, num_hidden_layers=2, time_step_rank=2, use_mambapy=False
    )
    text = tokens(2, 8)
    return training_step(MambaForCausalLM(config), input_ids=text, labels=text)


def florence2() -> Workload:
    image_token = VOCAB - 1
    dims = [8, 16, 24, 32]
    heads = [1, 2, 3, 4]
    config = Florence2Config(
        vision_config=dict(
            embed_dim=dims,
            num_heads=heads,
            num_groups=heads,
            depths=[1, 1, 1, 1],
            patch_stride=[4, 2, 2, 1],
            window_size=4,
            projection_dim=24,
            max_position_embeddings=8,
            max_temporal_embeddings=4,
        ),
        text_config=dict(
            model_type="bart",
            vocab_size=VOCAB,
            d_model=24,
            encoder_layers=1,
            decoder_layers=1,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            max_position_embeddings=64,
            bos_token_id=0,
            pad_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=2,
            forced_eos_token_id=None,
        ),
        image_token_id=image_token,
    )
    prompt = torch.cat([torch.full((2, 17), image_token), tokens(2, 4)], dim=1)  # 4 x 4 cells after their mean
    return training_step(
        Florence2ForConditionalGeneration(config),
        input_ids=prompt,
        pixel_values=torch.randn(2, 3, 64, 64),
        labels=tokens(2, 5),
    )


def _seeded(build: Callable[[], Workload], seed: int = 0) -> Workload:
    torch.manual_seed(seed)
    np.random.seed(seed)  # wav2vec2 draws its masks from it
    return build()


_BUILDERS = (gpt2, t5, bart, bert, llama, clip, swin, convnext, vit_mae, wav2vec2, mamba, florence2)
ARCHITECTURES: dict[str, Callable[[], Workload]] = {
    build.__name__.replace("_", "-"): partial(_seeded, build) for build in _BUILDERS
}
"""Builders by name; each seeds torch and numpy, so that its first step always draws the same."""
