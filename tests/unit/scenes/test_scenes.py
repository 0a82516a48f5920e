import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frostline.scenes import (
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    SPLITS,
    boxes,
    captions,
    describe,
    digest,
    render_flat,
)

FIELDS = ("colour", "shape", "size", "relation", "centre", "radius", "shade", "background", "camera")
INDICES = st.lists(st.integers(0, 2**40), min_size=1, max_size=8)


def same(a, b):
    return a.noise_seed == b.noise_seed and all(torch.equal(getattr(a, name), getattr(b, name)) for name in FIELDS)


@settings(max_examples=25, deadline=None)
@given(INDICES, st.sampled_from(SPLITS), st.integers(0, 2**32))
def test_a_scene_depends_on_its_index_alone(indices, split, seed):
    together = describe(indices, split=split, seed=seed)
    drawn = render_flat(together, 16)
    backwards = describe(indices[::-1], split=split, seed=seed)
    assert together.noise_seed == backwards.noise_seed[::-1]
    for row, index in enumerate(indices):
        alone = describe([index], split=split, seed=seed)
        for name in FIELDS:
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[row])
            assert torch.equal(getattr(alone, name)[0], getattr(backwards, name)[-1 - row])
        assert torch.equal(render_flat(alone, 16)[0], drawn[row])


def test_global_random_numbers_play_no_part():
    torch.manual_seed(0)
    first = render_flat(describe(range(4), split="test"))
    torch.manual_seed(1)
    np.random.default_rng()
    state = torch.get_rng_state()
    assert torch.equal(first, render_flat(describe(range(4), split="test")))
    assert torch.equal(state, torch.get_rng_state())


def test_splits_and_seeds_share_no_scene():
    seeds = [
        noise_seed
        for split, seed in itertools.product(SPLITS, (0, 1))
        for noise_seed in describe(range(300), split=split, seed=seed).noise_seed
    ]
    assert len(set(seeds)) == len(seeds) == 300 * 8
    centres = torch.cat([describe(range(300), split=split).centre.flatten(1) for split in SPLITS])
    assert len(centres.unique(dim=0)) == 300 * len(SPLITS)


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("pretrain", "c70fd923a9ad7da2d88bec5ea7e8636eb18b50239aaf27df97400ab94c98aa08"),
        ("train", "a619b2255da2c794b3d1befd7d75c5aefcec259a4ddfddfa0475b6498f2b14ff"),
        ("validation", "e6e3cabae982ff568f2754aabd345c9d1690b590d8e86643737cd73e927f4a73"),
        ("test", "c66a49827070a24d728083e490eb5932416d5d5a102428b0cd062871ef746154"),
    ],
)
def test_the_data_are_those_of_every_published_number(split, expected):
    assert digest(describe(range(256), split=split)) == expected


def test_the_digest_sees_a_moved_object_and_another_word():
    scenes = describe(range(8), split="test")
    seen = {digest(scenes)}
    scenes.centre[3, 1, 0] += 0.01
    seen.add(digest(scenes))
    scenes.colour[0, 0] = (scenes.colour[0, 0] + 1) % len(COLOURS)
    seen.add(digest(scenes))
    assert len(seen) == 3


PHRASE = rf"a ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
SENTENCE = re.compile(rf"{PHRASE} ({'|'.join(RELATIONS)}) {PHRASE}")


def test_the_caption_says_what_the_description_holds_and_nothing_else():
    scenes = describe(range(500), split="train")
    colours = list(COLOURS)
    for row, caption in enumerate(captions(scenes)):
        size_a, colour_a, shape_a, relation, size_b, colour_b, shape_b = SENTENCE.fullmatch(caption).groups()
        assert [SIZES.index(size_a), SIZES.index(size_b)] == scenes.size[row].tolist()
        assert [colours.index(colour_a), colours.index(colour_b)] == scenes.colour[row].tolist()
        assert [SHAPES.index(shape_a), SHAPES.index(shape_b)] == scenes.shape[row].tolist()
        assert RELATIONS.index(relation) == scenes.relation[row]


def test_the_relation_is_true_of_the_positions():
    scenes = describe(range(500), split="train")
    axis = scenes.relation  # 0: left of, along x; 1: above, along y
    first, second = scenes.centre[:, 0], scenes.centre[:, 1]
    gap = (second - first).gather(1, axis[:, None])[:, 0]
    other = (second - first).gather(1, 1 - axis[:, None])[:, 0].abs()
    assert (gap > scenes.radius.sum(1)).all(), "objects overlap"
    assert (gap > other).all(), "the other relation would be as good"


def test_every_word_is_used_and_none_much_more_than_the_others():
    scenes = describe(range(4000), split="train")
    for values, choices in ((scenes.colour, COLOURS), (scenes.shape, SHAPES), (scenes.size, SIZES)):
        share = torch.bincount(values.flatten(), minlength=len(choices)) / values.numel()
        assert share == pytest.approx(torch.full((len(choices),), 1 / len(choices)).numpy(), abs=0.02)
    assert scenes.relation.double().mean().item() == pytest.approx(0.5, abs=0.03)


def without(scenes, k):
    """The same scenes with object k outside the picture."""
    centre = scenes.centre.clone()
    centre[:, k] = 9.0
    return type(scenes)(**{**vars(scenes), "centre": centre})


@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("size", [64, 96])
def test_boxes_hold_the_drawn_object_and_little_more(k, size):
    scenes, bin_pixels = describe(range(120), split="train"), size / 32
    change = (render_flat(scenes, size) - render_flat(without(scenes, k), size)).abs().amax(1)
    changed = change > change.amax((1, 2), keepdim=True) / 2  # covered by more than a half
    box = boxes(scenes)[:, k] * size
    for row in range(len(scenes)):
        y, x = changed[row].nonzero(as_tuple=True)
        x1, y1, x2, y2 = box[row].tolist()
        assert x1 - bin_pixels <= x.min() and x.max() + 1 <= x2 + bin_pixels
        assert y1 - bin_pixels <= y.min() and y.max() + 1 <= y2 + bin_pixels
        assert x.max() - x.min() + 1 >= 0.8 * (x2 - x1) - 1
        assert y.max() - y.min() + 1 >= 0.8 * (y2 - y1) - 1


def test_objects_can_be_seen():
    scenes = describe(range(300), split="train")
    for k in (0, 1):
        changed = (render_flat(scenes) - render_flat(without(scenes, k))).abs().amax(1) > 0.1
        assert (changed.flatten(1).sum(1) >= 4).float().mean() > 0.98


def test_pictures_are_float32_rgb_between_0_and_1():
    picture = render_flat(describe(range(5), split="test"), 40)
    assert picture.shape == (5, 3, 40, 40)
    assert picture.dtype == torch.float32
    assert picture.min() >= 0 and picture.max() <= 1
    assert boxes(describe(range(5), split="test")).shape == (5, 2, 4)


def test_no_scenes_are_a_batch_of_none():
    scenes = describe([], split="test")
    assert len(scenes) == 0
    assert captions(scenes) == []
    assert render_flat(scenes, 8).shape == (0, 3, 8, 8)


def test_each_scene_has_its_own_pixel_noise():
    scenes = describe([0, 1], split="train")
    other = replace(scenes, noise_seed=scenes.noise_seed[::-1])
    difference = (render_flat(scenes) - render_flat(other)).std(dim=(1, 2, 3))
    assert difference.tolist() == pytest.approx([0.03 * 2**0.5] * 2, rel=0.1)
