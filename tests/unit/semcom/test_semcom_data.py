import json
import re
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from frostline.config import DataConfig
from frostline.errors import ConfigError, DataError
from frostline.scenes import SHAPES, boxes, captions, describe
from frostline.systems.semcom.config import SemcomDataConfig
from frostline.systems.semcom.data import (
    Batch,
    CocoSource,
    Collate,
    SceneSource,
    SemcomDataset,
    detections,
    location_tokens,
    open_source,
)
from frostline.training import BatchStream, Sample
from semcom_parts import CPU, nano, scene_batch, small_system

TOKENIZER = nano().require_processor().tokenizer
BIN = 1 / 32


def equal(a: Batch, b: Batch) -> bool:
    tensors = ("pixels", "labels", "snr_db")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in tensors) and (
        (a.tasks, a.answers, a.noise_seeds) == (b.tasks, b.answers, b.noise_seeds)
    )


# Words


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
@example("ein großer roter Kreis über 🦊 \u200d\n\t\x00")
@example("  spaces  before and after  ")
def test_any_text_comes_back_from_its_tokens(text):
    ids = TOKENIZER(text).input_ids
    assert TOKENIZER.unk_token_id not in ids
    back = TOKENIZER.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    specials = (*TOKENIZER.all_special_tokens, "<loc_")
    assert back == text or any(special in text for special in specials)


def test_every_word_of_a_caption_is_one_token():
    for caption in captions(describe(range(50), split="test")):
        assert len(TOKENIZER(caption).input_ids) == len(caption.split()) + 2


def test_labels_are_the_answer_s_tokens_then_ignored():
    batch = scene_batch(12, task="both")
    for answer, row in zip(batch.answers, batch.labels, strict=True):
        ids = TOKENIZER(answer).input_ids
        assert row.tolist() == ids + [-100] * (len(row) - len(ids))
        assert ids[0] == TOKENIZER.bos_token_id and ids[-1] == TOKENIZER.eos_token_id
    assert batch.num_target_tokens == sum(len(TOKENIZER(answer).input_ids) for answer in batch.answers)
    assert set(batch.tasks[:12]) == {"<CAPTION>"} and set(batch.tasks[12:]) == {"<OD>"}


def test_locations_are_read_by_florence_s_own_parser_within_a_bin():
    scenes = describe(range(100), split="test")
    processor, true = nano().require_processor(), boxes(scenes)
    for row, text in enumerate(detections(scenes, location_tokens(TOKENIZER))):
        parsed = processor.post_process_generation(text, task="<OD>", image_size=(64, 64))["<OD>"]
        assert parsed["labels"] == [SHAPES[shape] for shape in scenes.shape[row]]
        found = torch.tensor(parsed["bboxes"]) / 64
        assert (found - true[row]).abs().max() <= BIN


def test_location_tokens_are_in_order_and_single():
    tokens = location_tokens(TOKENIZER)
    assert len(tokens) == 32
    assert [int(token[5:-1]) for token in tokens] == sorted(int(token[5:-1]) for token in tokens)
    assert all(len(TOKENIZER(token, add_special_tokens=False).input_ids) == 1 for token in tokens)


# Scenes


def test_a_scene_sample_is_its_picture_and_the_words_that_belong_to_it():
    source = SceneSource(nano(), split="train", num_scenes=5, task="both", seed=3)
    scenes = describe(range(5), split="train", seed=3)
    said = captions(scenes)
    assert (source.num_pictures, source.num_samples) == (5, 10)
    for sample in range(10):
        assert source.picture_of(sample) == sample % 5
        task, answer = source.question(sample)
        assert task == ("<CAPTION>" if sample < 5 else "<OD>")
        assert answer == said[sample] if sample < 5 else re.match(SHAPES[scenes.shape[sample - 5, 0]], answer)
    pixels = source.pixels(range(5))
    assert pixels.shape == (5, 3, 64, 64)
    assert pixels.min() >= -1 and pixels.max() <= 1 and pixels.min() < -0.2


def test_splits_and_seeds_are_different_sets():
    def identity(**change):
        arguments = dict(split="train", num_scenes=5, task="caption", seed=0) | change
        return SceneSource(nano(), **arguments).identity

    changes = ({}, {"split": "test"}, {"seed": 1}, {"num_scenes": 6})
    assert len({identity(**change) for change in changes}) == 4


@pytest.fixture(scope="module")
def dataset():
    source = SceneSource(nano(), split="train", num_scenes=20, task="both", seed=0)
    return SemcomDataset(source, snr_range_db=(-6.0, 15.0), seed=(7,))


def test_an_example_depends_on_its_index_and_epoch_alone(dataset):
    samples = [Sample(index, epoch) for epoch in (0, 1) for index in (3, 0, 19, 33)]
    collate = Collate(TOKENIZER, 128)
    together = dataset.__getitems__(samples)
    for sample, made in zip(samples, together, strict=True):
        assert equal(collate([made]), collate(dataset.__getitems__([sample])))
    snrs = [example["snr_db"] for example in together]
    assert len(set(snrs)) == len(samples) and all(-6 <= snr <= 15 for snr in snrs)
    assert torch.equal(together[0]["pixels"], together[4]["pixels"])


def test_snr_is_uniform_between_its_bounds(dataset):
    snrs = [dataset._words_and_channel(Sample(index % 40, index // 40))["snr_db"] for index in range(2000)]
    counts, _ = np.histogram(snrs, bins=7, range=(-6, 15))
    assert counts.sum() == 2000
    assert counts.min() > 230


def test_results_do_not_depend_on_the_number_of_loader_processes(dataset):
    def batches(num_workers):
        data = DataConfig(num_workers=num_workers)
        stream = BatchStream(
            dataset,
            Collate(TOKENIZER, 128),
            data=data,
            batch_size=8,
            gradient_accumulation_steps=2,
            seed=1,
            group=CPU,
        )
        steps = stream.iterate(3)  # across the end of an epoch
        try:
            return list(islice(steps, 4))
        finally:
            steps.close()

    for alone, shared in zip(batches(0), batches(2), strict=True):
        assert all(equal(a, b) for a, b in zip(alone, shared, strict=True))


def test_missing_features_are_refused_not_computed(dataset):
    cached = small_system(replace(small_system().config.memory, feature_cache="memory"))
    stream = cached.batches().iterate(0)
    with pytest.raises(DataError, match="8 pictures are not in the feature cache"):
        next(stream)


def test_a_batch_moves_with_all_its_tensors():
    batch = scene_batch(2)
    moved = batch.to(torch.device("meta"))
    assert {moved.pixels.device.type, moved.labels.device.type, moved.snr_db.device.type} == {"meta"}
    assert moved.features is None and moved.answers == batch.answers


# COCO


@pytest.fixture
def coco(tmp_path):
    """Three pictures, one without captions, and a function that opens the set after an optional change."""
    folder, file = tmp_path / "pictures", tmp_path / "captions.json"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    Image.fromarray(pixels[..., 0]).save(folder / "grey.jpg")
    Image.fromarray(np.dstack([pixels, pixels[..., 0]])).save(folder / "alpha.png")
    document = {
        "images": [
            {"id": 9, "file_name": "a.png"},
            {"id": 4, "file_name": "grey.jpg"},
            {"id": 5, "file_name": "alpha.png"},
        ],
        "annotations": [
            {"image_id": 9, "caption": " a fox \n"},
            {"image_id": 4, "caption": "grey"},
            {"image_id": 9, "caption": "a second fox"},
        ],
    }

    def open_it(change=lambda document: None, text=None):
        change(document)
        file.write_text(json.dumps(document) if text is None else text, encoding="utf-8")
        return CocoSource(nano(), images=str(folder), captions=str(file))

    open_it.folder, open_it.file = folder, file
    return open_it


def refusal(open_it, *arguments, **named):
    with pytest.raises(DataError) as raised:
        open_it(*arguments, **named)
    return raised.value


def test_a_caption_stays_with_its_picture(coco):
    source = coco()
    assert (source.num_pictures, source.num_samples) == (2, 3)
    said = [(source.picture_of(sample), source.question(sample)) for sample in range(3)]
    assert [answer for _, answer in said] == [("<CAPTION>", text) for text in ("a fox", "grey", "a second fox")]
    assert said[0][0] == said[2][0] != said[1][0]
    with Image.open(coco.folder / "a.png") as picture:
        expected = nano().require_processor().image_processor([picture.convert("RGB")], return_tensors="pt")
    assert torch.equal(source.pixels([source.picture_of(2)]), expected["pixel_values"])


def test_grey_pictures_and_those_with_alpha_become_rgb(coco):
    source = coco(lambda d: d["annotations"].append({"image_id": 5, "caption": "alpha"}))
    assert source.pixels(range(3)).shape == (3, 3, 64, 64)


def test_the_identity_changes_with_a_picture(coco):
    before = coco().identity
    Image.new("RGB", (5, 5)).save(coco.folder / "a.png")
    assert coco().identity != before


def test_text_that_is_not_json(coco):
    error = refusal(coco, text='{"images": [')
    assert error.what.startswith("the captions are not JSON")
    assert error.where == str(coco.file)


def test_bytes_that_are_not_text(coco):
    coco()
    coco.file.write_bytes(b"\xff\xfe{")
    with pytest.raises(DataError) as raised:
        CocoSource(nano(), images=str(coco.folder), captions=str(coco.file))
    assert raised.value.where == str(coco.file)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "3",
        "null",
        "{}",
        '{"images": []}',
        '{"images": {"id": 1}, "annotations": []}',
        '{"images": [{"id": 1}], "annotations": []}',
        '{"images": [{"id": 1, "file_name": 2}], "annotations": []}',
        '{"images": [{"id": [1], "file_name": "a.png"}], "annotations": []}',
        '{"images": [], "annotations": [{"image_id": 1}]}',
        '{"images": [], "annotations": [{"image_id": [1], "caption": "a"}]}',
        '{"images": [], "annotations": 4}',
    ],
)
def test_another_layout(coco, text):
    error = refusal(coco, text=text)
    assert error.what.startswith("the captions are not in COCO's layout")
    assert error.where == str(coco.file)
    assert "file_name" in error.do and "caption" in error.do


def test_ids_may_be_numbers_and_texts(coco):
    def change(document):
        document["images"][0]["id"] = "nine"
        document["annotations"][0]["image_id"] = document["annotations"][2]["image_id"] = "nine"

    assert coco(change).num_pictures == 2


def test_an_unknown_image_id(coco):
    error = refusal(coco, lambda d: d["annotations"].append({"image_id": 77, "caption": "?"}))
    assert error.what == "a caption belongs to picture 77, which is not listed"
    assert error.where == str(coco.file)


def test_an_empty_set(coco):
    error = refusal(coco, lambda d: d["annotations"].clear())
    assert error.what == "the data set is empty: no captions"
    assert error.where == str(coco.file)


def test_a_missing_caption_file_or_one_that_is_a_folder(coco):
    for path in (coco.file, coco.folder):
        with pytest.raises(DataError, match="cannot read the captions") as raised:
            CocoSource(nano(), images=str(coco.folder), captions=str(path))
        assert raised.value.where == str(path)


def test_a_missing_folder(coco):
    coco()
    with pytest.raises(DataError, match="the folder of pictures does not exist") as raised:
        CocoSource(nano(), images=str(coco.folder / "no"), captions=str(coco.file))
    assert raised.value.where == str(coco.folder / "no")


def test_a_missing_picture(coco):
    (coco.folder / "grey.jpg").unlink()
    error = refusal(coco)
    assert error.what == "a picture is missing"
    assert error.where == str(coco.folder / "grey.jpg")


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "header", "huge"])
def test_a_damaged_picture(coco, damage):
    path, source = coco.folder / "a.png", coco()
    content = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "text": b"not a picture",
            "cut": content[: len(content) // 2],
            "header": content[:20] + b"\xff" * 20 + content[40:],
            "huge": b"BM" + bytes(8) + b"\x36\0\0\0\x28\0\0\0" + b"\0\0\1\0" * 2 + b"\1\0\x18" + bytes(25),
        }[damage]
    )
    with pytest.raises(DataError, match="the picture cannot be read") as raised:
        source.pixels([source.picture_of(0)])
    assert raised.value.where == str(path)


def test_coco_needs_paths_and_has_captions_only():
    with pytest.raises(ConfigError, match="coco data needs pictures and captions"):
        open_source(SemcomDataConfig(kind="coco"), nano(), split="train", seed=0)
    with pytest.raises(ConfigError, match="no detection answers"):
        open_source(SemcomDataConfig(kind="coco", task="detection"), nano(), split="train", seed=0)
