import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from frostline.errors import ConfigError, DataError
from frostline.systems.ti.pictures import TEMPLATES, Pictures

NAMES = ("a.png", "b.jpg", "c.png")


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(NAMES):
        pixels = np.zeros((40, 60, 3), dtype=np.uint8)
        pixels[:, :30, 0], pixels[:, 30:, 1], pixels[..., 2] = 255, 255, 40 * number
        Image.fromarray(pixels).save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(f"  a <s> of\nkind {number}\n")
    (tmp_path / "notes.md").write_text("not a picture")
    return tmp_path


def pictures(folder, **settings):
    return Pictures(folder, **{"placeholder": "<s>", "size": (32, 32), **settings})


def test_pictures_cover_the_size_and_are_cut_at_the_centre(folder):
    for size in ((32, 32), (20, 30), (16, 48), (64, 64)):
        pixels = pictures(folder, size=size).pixels(0)
        assert pixels.shape == (3, *size) and pixels.dtype == torch.float32 and pixels.is_contiguous()
        assert -1 <= pixels.min() < -0.99 and 0.99 < pixels.max() <= 1
        left, right = pixels[..., : size[1] // 4].mean((1, 2)), pixels[..., -(size[1] // 4) :].mean((1, 2))
        assert left[0] > 0.99 > -0.99 > left[1] and right[1] > 0.99 > -0.99 > right[0]


def test_a_mirrored_picture_is_its_mirror(folder):
    found = pictures(folder)
    assert torch.equal(found.pixels(1, flipped=True).flip(2), found.pixels(1))


def test_captions_lie_beside_pictures_or_come_from_templates(folder):
    assert pictures(folder, captions="files").prompts == ("a <s> of kind 0", "a <s> of kind 1", "a <s> of kind 2")
    for kind in ("object", "style"):
        prompts = pictures(folder, captions=kind).prompts
        assert len(prompts) == len(TEMPLATES[kind]) and all("<s>" in prompt for prompt in prompts)
    assert pictures(folder, templates=["my {} and {}"]).prompts == ("my <s> and <s>",)
    with pytest.raises(ConfigError, match="'my dog' has no place for the concept"):
        pictures(folder, templates=["my dog"])


def test_a_caption_that_cannot_train_the_concept_names_its_file(folder):
    (folder / "b.txt").write_text("a dog of kind 1")
    with pytest.raises(DataError, match="the caption 'a dog of kind 1' has no <s>") as error:
        pictures(folder, captions="files")
    assert "b.txt" in str(error.value)
    (folder / "b.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match="not UTF-8"):
        pictures(folder, captions="files")
    (folder / "b.txt").unlink()
    with pytest.raises(DataError, match="cannot be read") as error:
        pictures(folder, captions="files")
    assert "b.txt" in str(error.value)


def test_a_folder_without_pictures_and_a_file_that_is_none_are_refused(folder, tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        pictures(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no pictures"):
        pictures(tmp_path / "empty")
    (folder / "b.jpg").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read") as error:
        pictures(folder).pixels(1)
    assert "b.jpg" in str(error.value)


def test_draws_are_a_function_of_seed_and_number(folder):
    found = pictures(folder, flip=True)
    first = list(itertools.islice(found.draws(seed=1), 30))
    assert first == [found.draw(number, seed=1) for number in range(30)]
    assert first[7:] == list(itertools.islice(found.draws(seed=1, start=7), 23))
    assert first != [found.draw(number, seed=2) for number in range(30)]
    shares = [list(itertools.islice(found.draws(seed=1, rank=rank, world_size=3), 10)) for rank in range(3)]
    assert [draw for row in zip(*shares, strict=True) for draw in row] == first


def test_few_pictures_are_enough_for_any_batch_and_number_of_workers(folder):
    found = pictures(folder, flip=True)
    draws = list(itertools.islice(found.draws(seed=0), 900))
    for block in itertools.batched(draws, 3) if hasattr(itertools, "batched") else zip(*[iter(draws)] * 3, strict=True):
        assert sorted(draw.picture for draw in block) == [0, 1, 2]
    assert set(Counter(draw.prompt for draw in draws)) == set(range(len(found.prompts)))
    assert 0.4 < sum(draw.flipped for draw in draws) / 900 < 0.6
    assert {(draw.picture, draw.flipped) for draw in draws} == set(found.variants)
    for worker in range(64):  # many more than pictures: each has something to do
        assert next(found.draws(seed=0, rank=worker, world_size=64)).picture in range(3)


def test_a_caption_goes_with_its_picture_and_nothing_is_mirrored_unasked(folder):
    found = pictures(folder, captions="files")
    draws = list(itertools.islice(found.draws(seed=0), 60))
    assert all(draw.prompt == draw.picture and not draw.flipped for draw in draws)
    assert found.variants == ((0, False), (1, False), (2, False))


def test_one_picture_will_do(folder):
    for name in NAMES[1:]:
        (folder / name).unlink()
    assert [draw.picture for draw in itertools.islice(pictures(folder).draws(seed=0), 5)] == [0] * 5
