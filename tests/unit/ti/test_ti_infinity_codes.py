"""Schedules, text, bits, the tokenizer and checkpoints."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.nn import functional as F

from frostline.errors import CheckpointError, ConfigError, ShapeError
from frostline.systems.ti.infinity.checkpoints import load_tokenizer, load_transformer
from frostline.systems.ti.infinity.quantizer import MultiScaleBSQ
from frostline.systems.ti.infinity.schedule import (
    Schedule,
    nearest_ratio,
    published_schedule,
    ratios,
    square_schedule,
)
from frostline.systems.ti.infinity.sizes import TOKENIZERS, TokenizerConfig
from frostline.systems.ti.infinity.text import CompactText
from frostline.systems.ti.infinity.tokenizer import ImageTokenizer
from ti_infinity_parts import tiny_config, tiny_model, tiny_text

NANO = TokenizerConfig(code_bits=4, base_channels=24, channel_multiples=(1, 1, 1), num_res_blocks=1)


def test_published_schedules():
    assert len(ratios()) == 15
    for ratio in ratios():
        whole = published_schedule("1M", ratio)
        assert whole.num_scales == 13
        assert whole.final_grid[0] / whole.final_grid[1] == pytest.approx(ratio, abs=0.01)
        small = published_schedule("0.06M", ratio)
        assert small == whole.prefix(7)
        assert small.reference == whole.final_grid
    assert published_schedule("1M", 0.75).final_grid == (54, 72)
    assert nearest_ratio(720, 1280) == 0.571
    with pytest.raises(ConfigError, match=r"the ratio 1.3\n.*nearest is 1.333"):
        published_schedule("1M", 1.3)
    with pytest.raises(ConfigError, match="choose one of"):
        published_schedule("2M")


def test_spans_follow_each_other():
    schedule = square_schedule(1, 2, 4, 8)
    assert schedule.num_tokens == 85
    assert schedule.ends == (1, 5, 21, 85)
    assert [span.stop - span.start for span in schedule.spans] == [1, 4, 16, 64]
    assert schedule.scaled(2) == square_schedule(2, 4, 8, 16)
    with pytest.raises(ConfigError, match="the first 5 of 4 scales"):
        schedule.prefix(5)
    with pytest.raises(ConfigError, match="cannot have the grids"):
        Schedule(((1, 0),))


def test_text_goes_to_the_official_tuple_and_back():
    text = tiny_text(3, 5, 1)
    features, lengths, ends, longest = text.official()
    assert (lengths, ends.tolist(), ends.dtype, longest) == ([3, 5, 1], [0, 3, 8, 9], torch.int32, 5)
    again = CompactText.from_official((features, lengths, ends, longest))
    assert again.features is text.features
    assert again.lengths == text.lengths
    assert torch.equal(CompactText.join(text.split()).features, text.features)
    assert text.followed_by(text).lengths == (3, 5, 1, 3, 5, 1)
    for bad in ((3, 5), (), (9, 0)):
        with pytest.raises(ShapeError, match="text features of prompts with"):
            CompactText(text.features, bad)


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from([square_schedule(1, 2, 4, 8), Schedule(((1, 1), (2, 1), (5, 3))), square_schedule(1, 3)]),
    st.sampled_from([(5, False), (2, True)]),
    st.sampled_from([0.0, 0.3]),
)
def test_bits_inputs_and_features_belong_together(schedule, size, flip):
    quantizer = MultiScaleBSQ(*size)
    cells = schedule.scaled(2) if size[1] else schedule
    features = torch.randn(2, size[0], *cells.final_grid)
    codes = quantizer.encode(features, schedule, flip=flip)
    assert codes.bits.shape == (2, schedule.num_tokens, quantizer.token_bits)
    assert codes.inputs.shape == (2, schedule.num_tokens - 1, quantizer.token_bits)
    assert codes.features.shape == features.shape
    if flip:
        return
    torch.testing.assert_close(quantizer.decode(codes.bits, schedule), codes.features)
    torch.testing.assert_close(quantizer.quantize(features, schedule), codes.features)
    total = None
    for scale, (span, grid) in enumerate(zip(schedule.spans, cells.grids, strict=True)):
        rest = features - (0 if total is None else total)
        shrunk = rest if grid == cells.final_grid else F.adaptive_avg_pool2d(rest, grid)
        signs = F.pixel_unshuffle((shrunk > 0).byte(), 2) if size[1] else (shrunk > 0).byte()
        assert torch.equal(codes.bits[:, span], signs.flatten(2).transpose(1, 2))
        if total is not None:
            before = slice(span.start - 1, span.stop - 1)
            torch.testing.assert_close(quantizer.next_input(total, schedule, scale), codes.inputs[:, before])
        total = quantizer.add(total, codes.bits[:, span], schedule, scale)


def test_flips_change_what_is_seen_and_leave_the_scale_s_own_labels():
    schedule, quantizer = square_schedule(1, 2, 4, 8), MultiScaleBSQ(12)
    features = torch.randn(4, 12, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = quantizer.encode(features, schedule)
    flipped = [
        quantizer.encode(features, schedule, flip=1.0, num_flip_scales=2, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    ]
    assert torch.equal(flipped[0].inputs, flipped[1].inputs)
    assert torch.equal(flipped[0].bits[:, 0], plain.bits[:, 0])
    assert not torch.equal(flipped[0].inputs[:, :4], plain.inputs[:, :4])
    assert not torch.equal(flipped[0].bits[:, 5:], plain.bits[:, 5:])  # finer scales mend
    error = [(codes.features - features).pow(2).mean() for codes in (plain, flipped[0])]
    unmended = quantizer.encode(features, schedule, flip=1.0, generator=torch.Generator().manual_seed(3))
    assert error[1] < (unmended.features - features).pow(2).mean()
    with pytest.raises(ConfigError, match="flip is 2"):
        quantizer.encode(features, schedule, flip=2)
    with pytest.raises(ShapeError, match=r"raw features must have shape \(B, 12, 8, 8\)"):
        quantizer.encode(features[..., :4], schedule)


def test_a_quantised_map_passes_its_gradient_on():
    features = torch.randn(1, 4, 4, 4, requires_grad=True)
    MultiScaleBSQ(4).quantize(features, square_schedule(1, 2, 4)).square().sum().backward()
    assert features.grad.abs().min() > 0


@pytest.mark.parametrize("name", TOKENIZERS)
def test_published_tokenizers(name):
    with torch.device("meta"):
        model = ImageTokenizer(TOKENIZERS[name])
        stride = 8 if "patchify" in name else 16
        assert model.encode(torch.empty(1, 3, 64, 48)).shape == (1, model.config.code_bits, 64 // stride, 48 // stride)
        assert model.decode(torch.empty(1, model.config.code_bits, 4, 3)).shape == (1, 3, 4 * stride, 3 * stride)


def test_tokenizer_refusals():
    with pytest.raises(ShapeError, match=r"a multiple of 4\), got \(1, 3, 30, 32\)"):
        ImageTokenizer(NANO)(torch.zeros(1, 3, 30, 32))
    with pytest.raises(ConfigError, match="20 channels cannot be normalised"):
        TokenizerConfig(base_channels=20)


def write(kind, state, folder):
    """A checkpoint of each published form."""
    if kind == "shards":
        names = sorted(state)
        parts = {"a.bin": names[::2], "b.bin": names[1::2]}
        for file, own in parts.items():
            torch.save({name: state[name] for name in own}, folder / file)
        places = {name: file for file, own in parts.items() for name in own}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
        return folder
    if kind == "safetensors":
        save_file({name: tensor.clone() for name, tensor in state.items()}, folder / "m.safetensors")
        return folder / "m.safetensors"
    torch.save({"trainer": {"gpt_fsdp": state}, "epoch": 3} if kind == "training" else state, folder / "m.pth")
    return folder / "m.pth"


@pytest.mark.parametrize("kind", ["pth", "safetensors", "training", "shards"])
def test_transformers_load_from_every_published_form(kind, tmp_path):
    model = tiny_model()
    extra = {"lvl_1L": torch.zeros(3)} if kind == "pth" else {}
    loaded = load_transformer(write(kind, model.state_dict() | extra, tmp_path), tiny_config(max_text_tokens=4))
    assert loaded.cfg_uncond.shape == (4, 24)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor[:4] if name == "cfg_uncond" else tensor)


def test_a_missing_extra_or_misshapen_tensor_is_named(tmp_path):
    state = tiny_model().state_dict()
    for change, text in (
        (lambda state: state.pop("head.bias"), "the checkpoint lacks head.bias"),
        (lambda state: state.update(more=torch.zeros(1)), "holds what the model does not have: more"),
        (lambda state: state.update({"head.bias": torch.zeros(3)}), r"head.bias \(3, the model has 12\)"),
        (lambda state: state.update(cfg_uncond=torch.zeros(2, 24)), r"cfg_uncond \(2 x 24, the model has 8 x 24\)"),
    ):
        changed = dict(state)
        change(changed)
        with pytest.raises(CheckpointError, match=text):
            load_transformer(write("pth", changed, tmp_path), tiny_config())
    with pytest.raises(CheckpointError, match=r"lacks blocks.2.ada_gss, .* and 18 more"):
        load_transformer(write("pth", state, tmp_path), tiny_config(depth=3))


def test_unreadable_checkpoints_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_transformer(tmp_path / "none.pth", tiny_config())
    with pytest.raises(CheckpointError, match="the folder has no index of shards"):
        load_transformer(tmp_path, tiny_config())
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")
    for name in ("bad.pth", "bad.safetensors"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_transformer(tmp_path / name, tiny_config())
    torch.save({"head": CheckpointError("any class")}, tmp_path / "code.pth")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_transformer(tmp_path / "code.pth", tiny_config())
    torch.save({"head": 3}, tmp_path / "numbers.pth")
    with pytest.raises(CheckpointError, match="not a table of tensors"):
        load_transformer(tmp_path / "numbers.pth", tiny_config())
    folder = write("shards", tiny_model().state_dict(), tmp_path)
    torch.save({"head.weight": torch.zeros(1)}, folder / "b.bin")
    with pytest.raises(CheckpointError, match=r"the index and the shard 'b.bin' do not agree"):
        load_transformer(folder, tiny_config())
    (folder / "a.bin").unlink()
    with pytest.raises(CheckpointError, match=r"the shard 'a.bin' is missing"):
        load_transformer(folder, tiny_config())


def test_tokenizers_load_with_and_without_bit_masks(tmp_path):
    model = ImageTokenizer(NANO)
    state = model.state_dict()
    assert state["quantize.lfq.mask"].tolist() == [8, 4, 2, 1]
    for left_out in ((), ("quantize.lfq.mask", "quantizer.lfq.mask")):
        torch.save({"vae": {k: v for k, v in state.items() if k not in left_out}}, tmp_path / "vae.pth")
        loaded = load_tokenizer(tmp_path / "vae.pth", NANO).state_dict()
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[name], state[name]) for name in state)
