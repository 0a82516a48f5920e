"""The weights that ship, and the recipe that made them."""

import dataclasses
import json
import shutil

import pytest
import torch
from transformers import AutoTokenizer, T5EncoderModel
from transformers.utils import logging as hf_logging

from frostline.errors import ConfigError
from frostline.scenes import NAMELESS_THINGS, THING_BACKGROUNDS, THING_COLOURS, THINGS, render_things
from frostline.systems.ti import pretrain as pretraining
from frostline.systems.ti.infinity.generation import generate
from frostline.systems.ti.infinity.quantizer import MultiScaleBSQ
from frostline.systems.ti.nano import (
    NANO_DIRECTORY,
    NANO_SAMPLING,
    NANO_SCHEDULE,
    NANO_TOKENIZER,
    NANO_TRANSFORMER,
    TEXT_ENCODER,
    nano_image_tokenizer,
    nano_judge,
    nano_transformer,
    text_encoder_config,
    text_tokenizer,
)
from frostline.systems.ti.nano_scores import judge_score, tokenizer_score, transformer_score
from frostline.systems.ti.pictures import TEMPLATES
from frostline.systems.ti.pretrain import Recipe, pretrain, sums_of_scales, write_settings
from frostline.systems.ti.text_encoder import load_text_encoder

LOG = [json.loads(line) for line in (NANO_DIRECTORY / "pretraining.jsonl").read_text("utf-8").splitlines()]
LOADERS = {"judge": nano_judge, "tokenizer": nano_image_tokenizer, "transformer": nano_transformer}


@pytest.fixture(autouse=True)
def _no_progress_bars():
    """Those of transformers leave a thread behind."""
    drawn = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    yield
    if drawn:
        hf_logging.enable_progress_bar()


def plain(recipe):
    """A recipe as JSON has it."""
    return json.loads(json.dumps(dataclasses.asdict(recipe)))


def test_the_files_are_small_enough_for_a_package():
    sizes = [path.stat().st_size for path in NANO_DIRECTORY.rglob("*") if path.is_file()]
    assert sum(sizes) <= 5e6


def test_the_transformer_has_about_a_million_parameters():
    counts = {name: sum(p.numel() for p in load().parameters()) for name, load in LOADERS.items()}
    assert 1.2e6 < counts["transformer"] < 1.5e6
    assert counts["tokenizer"] < 0.6e6 and counts["judge"] < 0.1e6


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_parts_are_float32_in_eval_mode(load):
    model = load()
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_the_judge_is_right_about_unseen_pictures():
    assert judge_score() >= 0.995


def test_pictures_are_themselves_after_having_been_bits():
    assert tokenizer_score(num=200) >= 0.98


def test_named_things_are_drawn_as_they_are_told():
    assert transformer_score(num=120) >= 0.95


def test_a_thing_can_be_drawn_and_cannot_be_asked_for():
    """Nameless shapes all come when "thing" is said, none of them as often as not; colour and background are right."""
    told = render_things(range(120), split="test", seed=7, shapes=NAMELESS_THINGS)
    encoder = load_text_encoder(str(NANO_DIRECTORY / TEXT_ENCODER))
    text = encoder.encode([encoder.rewrite(caption, (), required=False) for caption in told.captions()])
    drawn = generate(
        nano_transformer(),
        MultiScaleBSQ(NANO_TOKENIZER.code_bits),
        text,
        NANO_SCHEDULE,
        sampling=NANO_SAMPLING,
        generator=torch.Generator().manual_seed(0),
    )
    with torch.no_grad():
        seen = nano_judge().verdict(nano_image_tokenizer().decode(drawn.features))
    shares = seen.shapes.bincount(minlength=len(THINGS)) / 120
    nameless = shares[[THINGS.index(shape) for shape in NAMELESS_THINGS]]
    assert nameless.sum() >= 0.9 and nameless.max() < 0.5
    assert (seen.colours == told.colours).double().mean() >= 0.95
    assert (seen.backgrounds == told.backgrounds).double().mean() >= 0.95


def test_transformers_own_loading_reads_the_text_encoder():
    folder = NANO_DIRECTORY / TEXT_ENCODER
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, loading = T5EncoderModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    batch = tokenizer(["a red thing on dark", "a thing"], padding=True, return_tensors="pt")
    assert batch.attention_mask.sum(1).tolist() == [6, 3]
    assert model(**batch).last_hidden_state.shape == (2, 6, NANO_TRANSFORMER.text_width)
    assert tokenizer.get_vocab() == text_tokenizer().get_vocab()
    assert model.config.num_layers == text_encoder_config().num_layers


def test_every_word_of_captions_and_templates_is_known_and_no_other():
    tokenizer = text_tokenizer()
    texts = render_things(range(200), split="train", size=4).captions()
    texts += [template.format("thing") for templates in TEMPLATES.values() for template in templates]
    texts += [f"A {colour} thing on {ground}." for colour in THING_COLOURS for ground in THING_BACKGROUNDS]
    for text in texts:
        ids = tokenizer(text).input_ids
        assert tokenizer.unk_token_id not in ids, text
        assert ids[-1] == tokenizer.eos_token_id
    for shape in NAMELESS_THINGS:
        assert tokenizer(shape).input_ids == [tokenizer.unk_token_id, tokenizer.eos_token_id]


def test_the_log_belongs_to_the_weights_and_to_today_s_recipe():
    header, last = LOG[0], LOG[-1]
    recipe = Recipe()
    assert {name: header[name] for name in plain(recipe)} == plain(recipe)
    first = render_things(range(recipe.transformer.batch_size), split="pretrain", seed=2)  # of the third stage
    assert header["data_digest"] == first.digest()
    curves = {name: [line for line in LOG if line.get("stage") == name] for name in LOADERS}
    for name, curve in curves.items():
        assert curve[-1]["step"] == getattr(recipe, name).num_steps
        assert curve[-1]["loss"] < 0.8 * curve[0]["loss"]
    assert sum(curve[-1]["cpu_seconds"] for curve in curves.values()) < 20 * 60
    assert last["right"]["judge"] == pytest.approx(judge_score(), abs=0.002)
    assert last["right"]["transformer"] >= 0.95


def test_the_shipped_configuration_is_what_the_recipe_writes(tmp_path):
    with torch.random.fork_rng():
        write_settings(Recipe(), tmp_path)
    for file in ("config.json", f"{TEXT_ENCODER}/tokenizer.json", f"{TEXT_ENCODER}/model.safetensors"):
        assert (tmp_path / file).read_bytes() == (NANO_DIRECTORY / file).read_bytes(), file


def test_each_stage_begins_as_logged_and_what_is_written_is_kept(tmp_path, monkeypatch):
    """The recipe's first ten steps of each stage, with the shipped parts in the place of the stages before it."""

    class Short(pretraining.Progress):
        def add(self, step, loss, *, is_last):
            super().add(step, loss, is_last=is_last)
            if step == 10:
                raise StopIteration

    monkeypatch.setattr(pretraining, "Progress", Short)
    for name in LOADERS:
        with pytest.raises(StopIteration), torch.random.fork_rng():
            pretrain(Recipe(), tmp_path)
        shutil.copy(NANO_DIRECTORY / f"{name}.safetensors", tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "pretraining.jsonl").read_text("utf-8").splitlines()]
    assert [line for line in lines if "data_digest" in line] == [LOG[0]]
    begun = {line["stage"]: line for line in lines if "stage" in line}
    for name in LOADERS:
        logged = next(line for line in LOG if line.get("stage") == name)
        assert begun[name]["step"] == logged["step"] == 10
        assert begun[name]["loss"] == pytest.approx(logged["loss"], rel=0.01)  # the same to 4 digits where it was made


def test_parts_of_another_recipe_are_not_mixed_in(tmp_path):
    shutil.copy(NANO_DIRECTORY / "pretraining.jsonl", tmp_path)
    with pytest.raises(ConfigError, match="another recipe") as raised:
        pretrain(Recipe(seed=1), tmp_path)
    assert raised.value.where == str(tmp_path)


def test_sums_of_scales_end_with_what_the_quantizer_gives():
    """Values and gradient; the coarse ones are what generation has before it draws the finer scales."""
    quantizer, chance = MultiScaleBSQ(NANO_TOKENIZER.code_bits), torch.Generator().manual_seed(0)
    features = torch.randn(3, NANO_TOKENIZER.code_bits, 8, 8, generator=chance, requires_grad=True)
    direction = torch.randn(features.shape, generator=chance)
    mine, theirs = sums_of_scales(features, quantizer)[-1], quantizer.quantize(features, NANO_SCHEDULE)
    torch.testing.assert_close(mine, theirs)
    (gradient,) = torch.autograd.grad((mine * direction).sum(), features)
    (other,) = torch.autograd.grad((theirs * direction).sum(), features)
    torch.testing.assert_close(gradient, other)
    bits = quantizer.encode(features, NANO_SCHEDULE).bits
    coarse = quantizer.add(None, bits[:, NANO_SCHEDULE.spans[0]], NANO_SCHEDULE, 0)
    torch.testing.assert_close(sums_of_scales(features, quantizer)[0].detach(), coarse)
