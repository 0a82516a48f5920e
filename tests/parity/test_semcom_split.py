"""The model cut in two is the whole model, bit by bit, at both cuts."""

import pytest
import torch

from semcom_parts import nano, odd, scene_batch, small_model

CUTS = ("vision_tower", "image_proj_norm")
MODELS = {"nano": (nano, 64), "odd": (odd, 96)}
TYPES = (torch.float32, torch.bfloat16)


def whole_inputs(backbone, pixels, task="<CAPTION>"):
    """What `Florence2ForConditionalGeneration` takes: placeholders for the picture, then the prompt."""
    num_visual, _ = backbone.features_shape("image_proj_norm", pixels.shape[-1])
    row = [backbone.model.config.image_token_id] * num_visual + list(backbone.prompt_ids[task])
    ids = torch.tensor([row] * len(pixels))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def pictures(name, dtype, num=5):
    if name == "nano":
        return scene_batch(num).pixels.to(dtype)
    return torch.randn(num, 3, 96, 96, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("mode", CUTS)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_logits_and_loss_are_those_of_the_whole_model(name, mode, dtype):
    build, size = MODELS[name]
    backbone, pixels, batch = build(dtype), pictures(name, dtype), scene_batch(5)
    whole = backbone.model(**whole_inputs(backbone, pixels), labels=batch.labels)
    model = small_model(backbone, image_size=size, mode=mode)
    features = model.transmitter.features(pixels)
    assert features.shape == (5, *model.shape)
    assert features.dtype == torch.float32
    hidden = model.receiver.hidden(features, batch.tasks, batch.labels)
    assert torch.equal(model.receiver.head(hidden), whole.logits)
    assert torch.equal(model.receiver.loss(features, batch.tasks, batch.labels), whole.loss)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("mode", CUTS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("task", ["<CAPTION>", "<OD>"])
def test_the_receiver_writes_what_the_whole_model_writes(name, mode, num_beams, task):
    build, size = MODELS[name]
    backbone, pixels = build(), pictures(name, torch.float32)
    tokens = backbone.model.generate(
        **whole_inputs(backbone, pixels, task), max_new_tokens=16, num_beams=num_beams, do_sample=False
    )
    expected = backbone.require_processor().tokenizer.batch_decode(tokens, skip_special_tokens=True)
    model = small_model(backbone, image_size=size, mode=mode)
    written = model.receiver.generate(
        model.transmitter.features(pixels), (task,) * 5, max_new_tokens=16, num_beams=num_beams
    )
    assert written == expected
    assert len(set(written)) > 1, "the pictures make no difference"


@pytest.mark.parametrize("mode", CUTS)
@torch.no_grad()
def test_raw_features_pass_the_noiseless_channel_to_rounding(mode):
    model, batch = small_model(mode=mode, codec="none", channel="noiseless"), scene_batch(5)
    features = model.transmitter.features(batch.pixels)
    rebuilt = model(features, batch.snr_db, batch.noise_seeds)
    assert (rebuilt - features).abs().max() <= 1e-6 * features.abs().max()
    assert model.receiver.generate(rebuilt, batch.tasks) == list(batch.answers)


@pytest.mark.parametrize("mode", CUTS)
def test_widths_and_token_counts_come_from_the_model(mode):
    expected = {
        ("nano", "vision_tower"): (16, 128),
        ("nano", "image_proj_norm"): (17, 96),
        ("odd", "vision_tower"): (9, 60),
        ("odd", "image_proj_norm"): (10, 40),
    }
    for name, (build, size) in MODELS.items():
        assert small_model(build(), image_size=size, mode=mode).shape == expected[name, mode]
