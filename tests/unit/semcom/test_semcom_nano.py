"""The weights that ship, and the recipe that made them."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Florence2ForConditionalGeneration, Florence2Processor

from frostline.errors import ConfigError
from frostline.scenes import SHAPES, describe, digest, render_flat
from frostline.systems.semcom import pretrain as pretraining
from frostline.systems.semcom.backbone import load_backbone, shape_model
from frostline.systems.semcom.nano import NANO_DIRECTORY, nano_config, nano_processor
from frostline.systems.semcom.pretrain import Recipe, exact_captions, pretrain
from semcom_parts import nano, scene_batch, small_model

LOG = [json.loads(line) for line in (NANO_DIRECTORY / "pretraining.jsonl").read_text("utf-8").splitlines()]


def test_the_file_is_small_enough_for_a_package():
    assert (NANO_DIRECTORY / "model.safetensors").stat().st_size <= 4e6


def test_captions_of_unseen_scenes_are_right():
    backbone = nano()
    assert exact_captions(backbone.model, backbone.require_processor(), 1000) >= 0.98


def test_detections_of_unseen_scenes_name_the_right_objects():
    scenes = describe(range(200), split="test")
    model, processor = small_model(codec="none"), nano().require_processor()
    texts = model.receiver.generate(model.transmitter.features(render_flat(scenes) * 2 - 1), ["<OD>"] * 200)
    parsed = [processor.post_process_generation(text, task="<OD>", image_size=(64, 64))["<OD>"] for text in texts]
    true = [[SHAPES[shape] for shape in row] for row in scenes.shape.tolist()]
    assert sum(found["labels"] == labels for found, labels in zip(parsed, true, strict=True)) >= 0.95 * 200


def test_greedy_decoding_says_what_teacher_forcing_counts():
    batch = scene_batch(12)
    model = small_model(codec="none")
    features = model.transmitter.features(batch.pixels)
    best = model.receiver.predict(features, batch.tasks, batch.labels)
    right = ((best == batch.labels) | (batch.labels == -100)).all(1).tolist()
    written = model.receiver.generate(features, batch.tasks)
    assert [a == b for a, b in zip(written, batch.answers, strict=True)] == right


def test_the_log_belongs_to_the_weights_and_to_today_s_recipe():
    recipe, *curve, last = LOG
    assert {name: recipe[name] for name in vars(Recipe())} == vars(Recipe())
    assert recipe["num_parameters"] == nano().model.num_parameters()
    first = describe(range(recipe["batch_size"]), split="pretrain", seed=recipe["seed"])
    assert recipe["data_digest"] == digest(first)
    losses = [point["loss"] for point in curve]
    assert losses == sorted(losses, reverse=True)
    assert last["exact_captions_unseen"] >= 0.98


def test_the_shipped_configuration_and_words_are_what_the_recipe_makes():
    made, shipped = nano_processor(), Florence2Processor.from_pretrained(NANO_DIRECTORY)
    assert made.tokenizer.get_vocab() == shipped.tokenizer.get_vocab()
    built = Florence2ForConditionalGeneration(nano_config(made))
    assert {name: p.shape for name, p in built.named_parameters()} == {
        name: p.shape for name, p in nano().model.named_parameters()
    }


def test_no_dimension_is_special_released_sizes_are_known_without_a_download():
    with torch.device("meta"):
        base, large = (shape_model(f"florence-community/Florence-2-{size}") for size in ("base", "large"))
    assert (base.config.vision_config.embed_dim[-1], base.config.text_config.d_model) == (1024, 768)
    assert (large.config.vision_config.embed_dim[-1], large.config.text_config.d_model) == (2048, 1024)


@pytest.mark.parametrize("name", ["no/such/folder", "{empty}", "{other}"])
def test_what_is_no_florence_2_is_refused(name, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    given = name.format(empty=tmp_path, other=tmp_path / "other")
    with pytest.raises(ConfigError) as raised:
        load_backbone(given)
    assert given in raised.value.what
    assert raised.value.where == "--system.model"


def test_weights_that_are_missing_or_damaged_are_refused(tmp_path):
    for file in NANO_DIRECTORY.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "vision_tower.convs.0" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"weights are missing: model\.vision_tower\.convs\.0"):
        load_backbone(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match="cannot load a Florence-2 from"):
        load_backbone(str(tmp_path))


def test_pictures_that_the_strides_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match="70 pixels cannot be cut into patches of 16"):
        nano().features_shape("vision_tower", 70)


@pytest.mark.timeout(600)
def test_a_minute_of_pretraining_follows_the_logged_curve(tmp_path, monkeypatch):
    """The first 200 of 2,600 steps: the same recipe on the same data, stopped where the log has its first point."""
    recipe = Recipe()

    class EnoughError(Exception):
        pass

    def describe_first_200(indices, *, split, seed):
        if split == "pretrain" and indices.start >= 200 * recipe.batch_size:
            raise EnoughError
        return describe(indices, split=split, seed=seed)

    monkeypatch.setattr(pretraining, "describe", describe_first_200)
    with pytest.raises(EnoughError), torch.random.fork_rng():
        pretrain(recipe, tmp_path, evaluate_every=50)
    header, *curve = [json.loads(line) for line in (tmp_path / "pretraining.jsonl").read_text("utf-8").splitlines()]
    assert header == LOG[0]
    assert [point["step"] for point in curve] == [50, 100, 150, 200]
    losses = [point["loss"] for point in curve]
    assert losses == sorted(losses, reverse=True)
    assert sum(losses) / 4 == pytest.approx(LOG[1]["loss"], rel=0.1)  # the same to 5 digits where it was made
