"""The transformer: what sees what, what it refuses, and how it draws."""

import json

import pytest
import torch
from torch.nn import functional as F

from frostline.errors import ConfigError, ShapeError
from frostline.systems.ti.infinity.generation import Rollout, Sampling, generate
from frostline.systems.ti.infinity.loss import bit_losses, mean_per_scale, scale_weights
from frostline.systems.ti.infinity.quantizer import MultiScaleBSQ
from frostline.systems.ti.infinity.rope import rotate, rotations
from frostline.systems.ti.infinity.schedule import Schedule, published_schedule, square_schedule
from frostline.systems.ti.infinity.sizes import TRANSFORMERS, InfinityConfig
from frostline.systems.ti.infinity.transformer import Infinity
from frostline.tracing import build_fake, fake_tensors
from ti_infinity_parts import SCHEDULE, tiny_config, tiny_inputs, tiny_model, tiny_text

BSQ = MultiScaleBSQ(6)


def masked_attention(module, tokens, turns, ends):
    """Self-attention with a dense L x L mask, written another way."""
    qkv = F.linear(tokens, module.mat_qkv.weight) + torch.cat(
        [module.q_bias, torch.zeros_like(module.q_bias), module.v_bias]
    )
    queries, keys, values = qkv.unflatten(-1, (3, module.num_heads, -1)).permute(2, 0, 3, 1, 4)
    scale = module.scale_mul_1H11.clamp_max(torch.tensor(100.0).log()).exp()
    queries, keys = rotate(F.normalize(queries, dim=-1) * scale, turns), rotate(F.normalize(keys, dim=-1), turns)
    scales = torch.tensor([sum(place >= end for end in ends) for place in range(tokens.size(1))])
    weights = (queries @ keys.mT).masked_fill(scales[:, None] < scales, -torch.inf).softmax(-1)
    return module.proj((weights @ values).transpose(1, 2).flatten(2))


def test_attention_scale_by_scale_is_attention_under_a_block_causal_mask():
    module = tiny_model().double().all_blocks[0].sa
    tokens = torch.randn(2, SCHEDULE.num_tokens, 32, dtype=torch.float64)
    turns = rotations(SCHEDULE, 16)
    expected = masked_attention(module, tokens, turns, SCHEDULE.ends)
    torch.testing.assert_close(module(tokens, turns, SCHEDULE.ends, None), expected)


def test_no_token_sees_a_finer_scale():
    model, text, inputs = tiny_model(), tiny_text(3, 5), tiny_inputs()
    changed = inputs.clone()
    changed[:, 4:] += 1
    before, after = model(text, inputs, SCHEDULE), model(text, changed, SCHEDULE)
    assert torch.equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().min(-1).values.min() > 0


@pytest.mark.parametrize("schedule", [SCHEDULE, Schedule(((1, 1), (2, 1), (4, 3)), (8, 6))])
def test_the_first_scales_alone_have_the_same_logits(schedule):
    model, text = tiny_model(), tiny_text(3, 5)
    inputs = tiny_inputs(schedule=schedule)
    first = schedule.prefix(2)
    part = model(text, inputs[:, : first.num_tokens - 1], first)
    torch.testing.assert_close(part, model(text, inputs, schedule)[:, : first.num_tokens])


def test_a_prompt_does_not_depend_on_the_others():
    model, text, inputs = tiny_model(), tiny_text(3, 5), tiny_inputs()
    together = model(text, inputs, SCHEDULE)
    for sample, features in enumerate(text.split()):
        alone = model(text.join([features]), inputs[sample : sample + 1], SCHEDULE)
        torch.testing.assert_close(alone[0], together[sample])


def test_positions_scale_with_the_grid():
    turns = rotations(Schedule(((1, 1), (2, 3)), (64, 48)), 16)
    rows, columns = turns[1:].reshape(2, 3, 8).split(4, -1)
    steps = 10000 ** -(torch.arange(4) / 4)
    torch.testing.assert_close(rows[1, 0].angle(), torch.remainder(32 * steps + torch.pi, 2 * torch.pi) - torch.pi)
    torch.testing.assert_close(columns[0, 2], torch.polar(torch.ones(4), 32 * steps))
    assert torch.equal(turns[0], torch.ones(8, dtype=turns.dtype))


def test_bfloat16_as_a_whole_runs():
    model = tiny_model().bfloat16()
    assert model(tiny_text(3, 5), tiny_inputs(), SCHEDULE).dtype is torch.bfloat16


def test_dropped_prompts_are_null_prompts_and_the_given_ones_stay():
    model, text = tiny_model(), tiny_text(3, 5)
    before = text.features.clone()
    assert torch.equal(model.drop_text(text, 1.0).features, model.null_text((3, 5)).features)
    assert torch.equal(model.drop_text(text, 0.0).features, before)
    assert torch.equal(text.features, before)


def test_refusals():
    model = tiny_model()
    with pytest.raises(ShapeError, match=r"inputs of the scales behind the first must have shape \(2, 20, 6\)"):
        model(tiny_text(3, 5), tiny_inputs(3), SCHEDULE)
    with pytest.raises(ShapeError, match="text features must have shape"):
        model(tiny_text(3, 5, width=8), tiny_inputs(), SCHEDULE)
    with pytest.raises(ConfigError, match="begin with 1 x 1"):
        model(tiny_text(3), torch.zeros(1, 4, 6), square_schedule(2, 4))
    with pytest.raises(ConfigError, match=r"16 scales\n.*15 at most"):
        model(tiny_text(3), torch.zeros(1, 15, 6), square_schedule(*[1] * 16))
    with pytest.raises(ConfigError, match="9 tokens has no null prompt"):
        model.null_text((9,))
    with pytest.raises(ConfigError, match="3 heads share a width of 32"):
        tiny_config(num_heads=3)
    with pytest.raises(ConfigError, match="cannot be parted"):
        tiny_config(num_chunks=3)
    with pytest.raises(ConfigError, match="set pool_heads"):
        tiny_config(text_width=128 * 5)


@pytest.mark.parametrize(("name", "billions"), [("infinity-2b", 2.20), ("infinity-8b", 8.5), ("infinity-125m", 0.125)])
def test_published_sizes_are_built_without_memory(name, billions):
    mode = fake_tensors()
    model = build_fake(lambda: Infinity(TRANSFORMERS[name]), mode)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e9 == pytest.approx(billions, rel=0.05)
    names = model.state_dict().keys()
    assert f"block_chunks.{TRANSFORMERS[name].num_chunks - 1}.module.0.sa.scale_mul_1H11" in names
    assert model.head.out_features == 2 * TRANSFORMERS[name].token_bits


def test_a_small_model_starts_indifferent_and_can_be_written_down():
    model = Infinity(tiny_config())
    model.initialise_()
    logits = model(tiny_text(3, 5), tiny_inputs(), SCHEDULE)
    assert logits.abs().max() < 0.1
    assert InfinityConfig(**json.loads(json.dumps(vars(model.config)))) == model.config


def test_generation_repeats_with_its_seed_and_never_shows_the_null_branch_the_text():
    model, quantizer = tiny_model(), BSQ
    draws = [
        generate(
            model, quantizer, tiny_text(3, 5, seed=seed), SCHEDULE, sampling=Sampling(guidance=strength),
            generator=torch.Generator().manual_seed(7),
        )
        for strength, seed in ((3.0, 1), (3.0, 1), (3.0, 9), (0.0, 1), (0.0, 9))
    ]  # fmt: skip
    assert torch.equal(draws[0].bits, draws[1].bits)
    assert not torch.equal(draws[0].bits, draws[2].bits)
    assert torch.equal(draws[3].bits, draws[4].bits)
    assert draws[0].bits.shape == (2, 21, 6)
    assert torch.equal(draws[0].features, quantizer.decode(draws[0].bits, SCHEDULE))


def test_a_negative_prompt_stands_in_for_the_null_prompt():
    model, text = tiny_model(), tiny_text(3, 5)
    same = model.null_text((3, 5))

    def draw(**options):
        return generate(model, BSQ, text, SCHEDULE, generator=torch.Generator().manual_seed(7), **options).bits

    assert torch.equal(draw(), draw(negative=same))
    assert torch.equal(draw(negative=tiny_text(4)), draw(negative=tiny_text(4).join(list(tiny_text(4).split()) * 2)))
    assert not torch.equal(draw(), draw(negative=tiny_text(4)))
    with pytest.raises(ConfigError, match="3 negative prompts for 2 prompts"):
        draw(negative=tiny_text(1, 1, 1))


def test_guidance_of_one_is_the_text_alone_at_any_layer():
    model, text = tiny_model(), tiny_text(3)
    plain = generate(model, BSQ, text, SCHEDULE, sampling=Sampling(guidance=1.0, top_k=1)).bits
    mixed = [Sampling(guidance=[1.0, 1.0, 1.0], guidance_layer=layer, top_k=1) for layer in (None, 0, -1)]
    assert all(torch.equal(generate(model, BSQ, text, SCHEDULE, sampling=one).bits, plain) for one in mixed)
    strong = Sampling(guidance=[1.0, 1.0, 50.0], guidance_layer=0, top_k=1)
    changed = generate(model, BSQ, text, SCHEDULE, sampling=strong).bits
    assert torch.equal(changed[:, :5], plain[:, :5])
    assert not torch.equal(changed, plain)


def test_guidance_at_the_last_layer_mixes_what_the_head_sees():
    model, text = tiny_model(), tiny_text(3)
    rollout = Rollout(model, text.followed_by(model.null_text((3,))), square_schedule(1))
    seen = {}
    rollout.step(None, between=seen.setdefault)
    mixed = 3 * seen[1][:1] - 2 * seen[1][1:]
    logits = model.logits(mixed, model.condition(text).pooled)
    sampling = Sampling(guidance=3.0, guidance_layer=-1, top_k=1)
    drawn = generate(model, BSQ, text, square_schedule(1), sampling=sampling)
    assert torch.equal(drawn.bits, (logits[..., 1] > logits[..., 0]).to(torch.uint8))


def test_sampling_follows_probabilities_temperature_top_k_and_top_p():
    model, text, one = tiny_model(), tiny_text(*[3] * 400), square_schedule(1)
    text = text.join([tiny_text(3).features] * 400)
    ones = model(text, torch.zeros(400, 0, 6), one).softmax(-1)[0, 0, :, 1]

    def share(**options):
        sampling = Sampling(guidance=1.0, **options)
        drawn = generate(model, BSQ, text, one, sampling=sampling, generator=torch.Generator().manual_seed(0))
        return drawn.bits[:, 0].float().mean(0)

    assert (share() - ones).abs().max() < 0.1
    odds = ones.logit()
    assert (share(temperature=0.5) - (2 * odds).sigmoid()).abs().max() < 0.1
    assert torch.equal(share(top_k=1), (ones > 0.5).float())
    threshold = torch.minimum(ones, 1 - ones).median().item()
    kept = torch.minimum(ones, 1 - ones) > threshold
    nucleus = share(top_p=1 - threshold)
    assert torch.equal(nucleus[~kept], (ones > 0.5).float()[~kept])
    assert (nucleus - ones)[kept].abs().max() < 0.1


def test_bad_sampling_is_refused():
    model = tiny_model()
    for options, text in (
        ({"guidance": [1.0, 2.0]}, "2 values of guidance for 3 scales"),
        ({"guidance_layer": 2}, "guidance_layer is 2"),
    ):
        with pytest.raises(ConfigError, match=text):
            generate(model, BSQ, tiny_text(3), SCHEDULE, sampling=Sampling(**options))
    with pytest.raises(ConfigError, match="temperature is 0"):
        Sampling(temperature=0.0)
    with pytest.raises(ConfigError, match="top_p 2"):
        Sampling(top_p=2)


def test_losses_and_their_weights():
    logits, bits = torch.randn(2, 21, 6, 2), torch.randint(0, 2, (2, 21, 6), dtype=torch.uint8)
    expected = F.cross_entropy(logits.permute(0, 3, 1, 2), bits.long(), reduction="none").mean(-1)
    losses = bit_losses(logits, bits)
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(mean_per_scale(losses, SCHEDULE)[1], losses[:, 1:5].mean())
    for weighting, shares in (("tokens", (1, 4, 16)), ("sides", (1, 2, 4)), ("scales", (1, 1, 1))):
        weights = scale_weights(SCHEDULE, weighting)
        found = torch.stack([weights[span].sum() for span in SCHEDULE.spans])
        torch.testing.assert_close(found, torch.tensor(shares) / sum(shares))
    with pytest.raises(ConfigError, match="weighting is 'all'"):
        scale_weights(SCHEDULE, "all")
    with pytest.raises(ShapeError, match="logits must have shape"):
        bit_losses(logits[:1], bits)


def test_the_1m_schedule_has_the_published_length():
    assert published_schedule().num_tokens == 10521
    assert published_schedule("0.25M").num_tokens == 2521
