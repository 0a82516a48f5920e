"""Infinity against the published code.

`data/infinity_oracle.safetensors` was computed with that code on random weights, in float32 with its bfloat16
cross-attention: training on a square and an upright schedule and on patches; generation with guidance on logits and at
a layer, with the null prompt and with a negative one; a tokenizer both ways. Where the larger stored numbers lie beside
the repository, they are compared as well.

The floor is the published cross-attention: two float32 sums in another order can round to neighbouring bfloat16 values,
which moves a few logits by up to 0.005 (logits reach 5.5). All others agree to 1e-5 (largest seen: 4e-6), the loss to
1e-6 and the text's gradient to 3e-5 of its norm. With float32 cross-attention every logit is off by such roundings:
0.004 in the median, 0.07 at most, the gradient by 0.7 %.
"""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from frostline.systems.ti.infinity.generation import Rollout, Sampling, generate
from frostline.systems.ti.infinity.loss import bit_losses
from frostline.systems.ti.infinity.quantizer import MultiScaleBSQ
from frostline.systems.ti.infinity.schedule import published_schedule
from frostline.systems.ti.infinity.sizes import InfinityConfig, TokenizerConfig
from frostline.systems.ti.infinity.text import CompactText
from frostline.systems.ti.infinity.tokenizer import ImageTokenizer
from frostline.systems.ti.infinity.transformer import Infinity

SMALL = Path(__file__).parent / "data" / "infinity_oracle.safetensors"
SHARED = Path(__file__).parents[3] / "shared" / "data"
LARGE, LARGE_TOKENIZER = SHARED / "infinity_oracle.safetensors", SHARED / "infinity_tokenizer_oracle.safetensors"
needs_large = pytest.mark.skipif(not LARGE.is_file(), reason="the larger oracle lies beside this repository, not in it")
NEAR = {"atol": 1e-5, "rtol": 1e-5}
ROUNDING = 0.02
"""What one bfloat16 rounding of the published cross-attention may move a logit by."""
RATIOS = {
    "square": 1.0,
    "upright": 1.333,
    "patches": 1.0,
    "guided": 0.75,
    "guided_at_layer": 1.0,
    "guided_patches": 1.0,
}


@cache
def read(path):
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


def weights(prefix):
    tensors, _ = read(SMALL)
    values = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {name: tensor.float() / 128 if tensor.dtype is torch.int8 else tensor for name, tensor in values.items()}


@cache
def small_model(cross_attention="bfloat16", patchify=False):
    settings = json.loads(read(SMALL)[1]["config"])
    bits = {"code_bits": 4 if patchify else 16, "patchify": patchify}
    model = Infinity(InfinityConfig(**settings, **bits, cross_attention=cross_attention))
    model.load_state_dict(weights("model."), strict=True)
    return model.eval().requires_grad_(False)


def small(case):
    """Stored numbers, schedule, quantiser and text of a case."""
    tensors, metadata = read(SMALL)
    numbers = {name.partition(".")[2]: tensor for name, tensor in tensors.items() if name.partition(".")[0] == case}
    text = CompactText(numbers["text"], tuple(json.loads(metadata["lengths"])[case]))
    quantizer = MultiScaleBSQ(4, patchify=True) if "patches" in case else MultiScaleBSQ(16)
    return numbers, published_schedule("1M", RATIOS[case]).prefix(5), quantizer, text


def model_of(case, cross_attention="bfloat16"):
    return small_model(cross_attention, "patches" in case)


def difference(actual, expected):
    return (actual - expected).abs()


def assert_published(logits, stored):
    """99 % of the logits agree, and the others are off by a rounding at most."""
    apart = difference(logits, stored)
    assert apart.max() < ROUNDING
    assert apart.flatten().quantile(0.99) < 1e-5


@pytest.mark.parametrize("case", ["square", "upright", "patches"])
def test_bits_are_the_published_ones(case):
    numbers, schedule, quantizer, _ = small(case)
    codes = quantizer.encode(numbers["raw_features"], schedule)
    assert torch.equal(codes.bits, numbers["bits"])
    torch.testing.assert_close(codes.inputs, numbers["inputs"], **NEAR)


@pytest.mark.parametrize("case", ["square", "upright", "patches"])
def test_loss_logits_and_text_gradient_are_the_published_ones(case):
    numbers, schedule, _, text = small(case)
    features = text.features.clone().requires_grad_()
    logits = model_of(case)(CompactText(features, text.lengths), numbers["inputs"], schedule)
    loss = bit_losses(logits, numbers["bits"]).mean()
    loss.backward()
    assert_published(logits, numbers["logits"])
    assert difference(loss, numbers["loss"]).item() < 1e-6
    assert (features.grad - numbers["text_gradient"]).norm() < 1e-3 * numbers["text_gradient"].norm()


@pytest.mark.parametrize("case", ["square", "upright"])
def test_float32_cross_attention_is_off_by_the_published_rounding(case):
    numbers, schedule, _, text = small(case)
    apart = difference(model_of(case, "float32")(text, numbers["inputs"], schedule), numbers["logits"])
    assert 1e-3 < apart.median() < 0.01
    assert apart.max() < 0.1


def test_guidance_on_logits_follows_the_published_generation():
    for case in ("guided", "guided_patches"):
        numbers, schedule, quantizer, text = small(case)
        model = model_of(case)
        rollout = Rollout(model, text.followed_by(model.null_text(text.lengths)), schedule)
        for scale, logits in enumerate(replay(rollout, numbers, quantizer, schedule)):
            assert_published(logits, numbers[f"logits.{scale}"])


def test_guidance_at_a_layer_with_a_negative_prompt_follows_the_published_generation():
    numbers, schedule, quantizer, text = small("guided_at_layer")
    both = text.followed_by(CompactText(numbers["negative"], (numbers["negative"].size(0),)))

    def mix(number, tokens):
        return (3 * tokens[:1] - 2 * tokens[1:]).repeat(2, 1, 1) if number == 1 else tokens

    rollout = Rollout(small_model(), both, schedule)
    for scale, logits in enumerate(replay(rollout, numbers, quantizer, schedule, between=mix)):
        assert_published(logits[:1], numbers[f"logits.{scale}"])


def replay(rollout, numbers, quantizer, schedule, between=None):
    """Logits of each scale when the published code's own bits are what came before."""
    total = None
    with torch.no_grad():
        for scale, grid in enumerate(schedule.grids):
            inputs = None if total is None else quantizer.next_input(total, schedule, scale).repeat(2, 1, 1)
            yield rollout.step(inputs, between=between)
            cells = numbers[f"cells.{scale}"].permute(0, 3, 1, 2)
            cells = torch.nn.functional.pixel_unshuffle(cells, 2) if quantizer.patchify else cells
            assert cells.shape[-2:] == grid
            total = quantizer.add(total, cells.flatten(2).transpose(1, 2), schedule, scale)


@pytest.mark.parametrize("case", ["guided", "guided_at_layer", "guided_patches"])
def test_generation_is_what_teacher_forcing_says_of_its_bits(case):
    _, schedule, quantizer, text = small(case)
    model = model_of(case, "float32")
    drawn = generate(model, quantizer, text, schedule, sampling=Sampling(guidance=1.0, top_k=1))
    inputs, total = [], None
    rollout, stepped = Rollout(model, text, schedule), []
    with torch.no_grad():
        for scale, span in enumerate(schedule.spans):
            if total is not None:
                inputs.append(quantizer.next_input(total, schedule, scale))
            stepped.append(rollout.step(inputs[-1] if inputs else None))
            total = quantizer.add(total, drawn.bits[:, span], schedule, scale)
        forced = model(text, torch.cat(inputs, 1), schedule)
    assert difference(torch.cat(stepped, 1), forced).max() <= 1e-5
    assert torch.equal(total, drawn.features)
    sure = difference(forced[..., 1], forced[..., 0]) > 1e-4
    assert torch.equal((forced[..., 1] > forced[..., 0])[sure], drawn.bits.bool()[sure])


def test_the_tokenizer_gives_the_published_features_and_pictures():
    tensors, metadata = read(SMALL)
    settings = json.loads(metadata["tokenizer"])
    model = ImageTokenizer(TokenizerConfig(**settings | {"channel_multiples": tuple(settings["channel_multiples"])}))
    model.load_state_dict(weights("tokenizer_model."), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(model.encode(tensors["tokenizer.image"]), tensors["tokenizer.raw_features"], **NEAR)
        decoded = model.decode(tensors["tokenizer.raw_features"])
    torch.testing.assert_close(decoded, tensors["tokenizer.decoded"], **NEAR)


@needs_large
@pytest.mark.parametrize("cross_attention", ["bfloat16", "float32"])
def test_the_larger_stored_transformer(cross_attention):
    numbers, _ = read(LARGE)
    is_published = cross_attention == "bfloat16"
    config = InfinityConfig(
        depth=2, width=128, num_heads=1, text_width=128, code_bits=16, max_text_tokens=32, num_chunks=2,
        cross_attention=cross_attention,
    )  # fmt: skip
    model = Infinity(config).requires_grad_(False)
    model.load_state_dict({k[6:]: v for k, v in numbers.items() if k.startswith("model.")}, strict=True)
    schedule, quantizer = published_schedule("0.06M"), MultiScaleBSQ(16)
    codes = quantizer.encode(numbers["input.raw_features"], schedule)
    assert torch.equal(codes.bits, numbers["bsq.bits"])
    torch.testing.assert_close(codes.inputs, numbers["bsq.next_scale_inputs"], **NEAR)
    features = numbers["input.text_compact"].clone().requires_grad_()
    logits = model(CompactText(features, (5, 9)), codes.inputs, schedule)
    loss = bit_losses(logits, codes.bits).mean()
    loss.backward()
    gradient = numbers["forward.text_grad"]
    apart = difference(logits, numbers["forward.logits"])
    assert apart.max() < 0.01
    assert (apart.flatten().quantile(0.9) < 1e-5) == is_published
    assert difference(loss, numbers["forward.loss"]).item() < (1e-6 if is_published else 1e-4)
    assert (features.grad - gradient).norm() < (1e-3 if is_published else 1e-2) * gradient.norm()
    text = CompactText(numbers["generate.text_compact"], (5,))
    rollout, total = Rollout(model, text.followed_by(model.null_text((5,))), schedule), None
    for scale in range(schedule.num_scales):
        inputs = None if total is None else quantizer.next_input(total, schedule, scale).repeat(2, 1, 1)
        stored = numbers[f"generate.scale{scale:02d}.logits_cond_and_null"]
        with torch.no_grad():
            assert difference(rollout.step(inputs).flatten(-2), stored).max() < 0.01
        total = quantizer.add(total, numbers[f"generate.scale{scale:02d}.bits"].flatten(1, 3), schedule, scale)


@needs_large
def test_the_larger_stored_tokenizer():
    numbers, _ = read(LARGE_TOKENIZER)
    model = ImageTokenizer(TokenizerConfig(code_bits=16, base_channels=32))
    model.load_state_dict({k[10:]: v for k, v in numbers.items() if k.startswith("vae_model.")}, strict=True)
    with torch.no_grad():
        torch.testing.assert_close(model.encode(numbers["vae.image"]), numbers["vae.raw_features"], **NEAR)
