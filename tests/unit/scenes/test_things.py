"""Things with and without names."""

import pytest
import torch

from frostline.errors import ConfigError
from frostline.scenes import (
    COLOURS,
    NAMED_THINGS,
    NAMELESS_THINGS,
    THING_BACKGROUNDS,
    THING_COLOURS,
    THINGS,
    render_things,
)


def test_a_thing_is_a_function_of_its_number_alone():
    whole = render_things(range(70), split="train")
    assert whole.images.shape == (70, 3, 32, 32)
    assert whole.images.dtype == torch.uint8 and whole.shapes.dtype == torch.int64
    for mine, all_ in zip(render_things([64, 2], split="train"), whole, strict=True):
        assert torch.equal(mine, all_[[64, 2]])
    others = (render_things(range(70), split="test"), render_things(range(70), split="train", seed=1))
    for other in others:
        assert (other.images != whole.images).flatten(1).any(1).all()
    assert len({things.digest() for things in (whole, *others)}) == 3
    assert [len(part) for part in render_things([], split="train")] == [0, 0, 0, 0]


def test_pixels_are_the_same_on_every_machine():
    digest = render_things(range(50), split="pretrain").digest()
    assert digest == "6af483fa770a207691c193dd578cbe911a526c9ea87813b1d84aca150c0a8a70"


def test_shapes_colours_and_backgrounds_are_about_equally_frequent():
    things = render_things(range(1200), split="train", size=8)
    for labels, names in zip(things[1:], (THINGS, THING_COLOURS, THING_BACKGROUNDS), strict=True):
        counts = labels.bincount(minlength=len(names)) * len(names) / 1200
        assert counts.min() > 0.7 and counts.max() < 1.3


def test_captions_name_half_of_the_shapes():
    assert not set(NAMED_THINGS) & set(NAMELESS_THINGS) and len(THINGS) == 12
    named = render_things(range(40), split="train", shapes=NAMED_THINGS)
    nameless = render_things(range(40), split="train", shapes=("star",))
    for i, (caption, other) in enumerate(zip(named.captions(), nameless.captions("<s>"), strict=True)):
        colour, background = THING_COLOURS[int(named.colours[i])], THING_BACKGROUNDS[int(named.backgrounds[i])]
        assert caption == f"a {colour} {THINGS[int(named.shapes[i])]} on {background}"
        assert other == f"a {colour} <s> on {background}", "what else is in the picture does not depend on the shapes"
    assert all(" thing " in caption for caption in nameless.captions())


@pytest.mark.parametrize("shape", THINGS)
def test_each_shape_is_large_whole_centred_and_of_its_colour(shape):
    things = render_things(range(40), split="train", size=64, shapes=(shape,))
    images = things.images.double()
    border = torch.cat([images[:, :, [0, -1]].flatten(2), images[:, :, :, [0, -1]].flatten(2)], 2)
    ground = images[:, :, :1, :1]
    touched = (border != ground[:, :, 0]).any(1).double().mean(1)
    assert touched.max() < 0.01, "nothing is cut off: at most a star's tip touches the border"
    there = (images - ground).abs().sum(1) > 60
    share = there.double().mean((1, 2))
    assert share.min() > 0.08 and share.max() < 0.6
    axis = torch.arange(64) + 0.5
    for dim in (1, 2):
        where = there.any(dim)
        middle = (where * axis).sum(1) / where.sum(1)
        assert (middle - 32).abs().max() < 64 * 0.15
    palette = torch.tensor([COLOURS[THING_COLOURS[colour]] for colour in things.colours.tolist()])
    solid = (images - palette[:, :, None, None]).abs().amax(1) <= 12
    assert (solid & there).sum((1, 2)).div(there.sum((1, 2))).min() > 0.6
    assert torch.equal(ground.mean((1, 2, 3)) > 80, things.backgrounds == 1)


def test_shapes_are_told_apart_by_their_outlines():
    """The mean pictures of two shapes differ by far more than those of two halves of one shape."""
    means = []
    for shape in THINGS:
        images = render_things(range(80), split="train", shapes=(shape,)).images.double()
        there = ((images - images[:, :, :1, :1]).abs().sum(1) > 60).double()
        means.append(torch.stack([there[:40].mean(0), there[40:].mean(0)]))
    first, second = torch.stack(means, 1)
    distances = torch.cdist(first.flatten(1), second.flatten(1))
    own = distances.diagonal()
    assert (distances + torch.diag(torch.full((len(THINGS),), torch.inf))).min() > 2 * own.max()


@pytest.mark.parametrize(("shapes", "said"), [(("star", "sun"), "no such thing: sun"), ((), "an empty list")])
def test_unknown_shapes_are_refused(shapes, said):
    with pytest.raises(ConfigError, match=said) as raised:
        render_things([0], split="train", shapes=shapes)
    assert raised.value.where == "shapes" and "heart" in raised.value.do
