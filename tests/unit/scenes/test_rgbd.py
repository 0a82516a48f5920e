"""Rooms for a colour and a depth camera."""

import pytest
import torch

from frostline.scenes import MAX_DEPTH_METRES, RGBD_CLASSES, RGBD_LIGHTS, render_rgbd


def test_a_room_is_a_function_of_its_number_alone():
    colour, depth, labels = render_rgbd(range(6), split="train")
    assert (colour.shape, depth.shape) == ((6, 3, 32, 32), (6, 1, 32, 32))
    assert colour.dtype == depth.dtype == torch.uint8 and labels.dtype == torch.int64
    for mine, whole in zip(render_rgbd([4, 2], split="train"), (colour, depth, labels), strict=True):
        assert torch.equal(mine, whole[[4, 2]])
    for other in (render_rgbd(range(6), split="test"), render_rgbd(range(6), split="train", seed=1)):
        assert not torch.equal(other[0], colour) and not torch.equal(other[1], depth)
    assert [len(part) for part in render_rgbd([], split="train")] == [0, 0, 0]


def test_every_class_is_about_equally_frequent():
    counts = render_rgbd(range(900), split="train", size=4)[2].bincount(minlength=len(RGBD_CLASSES))
    assert counts.min() > 60 and counts.max() < 140


def objects(depth):
    """The pixels in front of wall and floor, roughly."""
    return (depth > 0) & (depth < 255 * 3.4 / MAX_DEPTH_METRES) & (torch.arange(64)[:, None] < 52)


def contrast(shading):
    """How far the object's brightness is from that of the wall around it, in standard errors, a room."""
    colour, depth, _ = render_rgbd(range(64), split="train", size=64, shading=shading)
    differences = []
    for picture, seen in zip(colour.double().mean(1), depth[:, 0], strict=True):
        inside, outside = picture[objects(seen)], picture[(seen > 255 * 3.8 / MAX_DEPTH_METRES)]
        spread = (inside.var() / len(inside) + outside.var() / len(outside)).sqrt()
        differences.append((inside.mean() - outside.mean()) / spread)
    return torch.stack(differences)


def test_colour_does_not_know_the_object_unless_shaded():
    hidden = contrast(0.0)
    assert hidden.abs().mean() < 1.2 and hidden.square().mean() == pytest.approx(1, abs=0.5), "noise and nothing else"
    assert contrast(1.0).abs().mean() > 5


def test_colour_knows_the_light_and_depth_does_not():
    colour, depth, labels = render_rgbd(range(300), split="train")
    brightest = colour.double().mean((2, 3)).argmax(1)
    assert torch.equal(brightest, labels % len(RGBD_LIGHTS))
    means = torch.stack([depth[labels % 3 == light].double().mean() for light in range(3)])
    assert (means - means.mean()).abs().max() < 5


def test_depth_has_the_shapes():
    """A box's front is flat in y, a sphere's is not; a cylinder is as high as wide or higher; edges have holes."""
    _, depth, labels = render_rgbd(range(200), split="train", size=64)
    bulge = []
    for seen in depth[:, 0]:
        rows, columns = objects(seen).nonzero(as_tuple=True)
        middle = int(columns.double().mean().round())
        column = seen[rows.min() + 4 : rows.max() - 3, middle].double()
        bulge.append((column[[0, -1]].mean() - column[len(column) // 2 - 1 : len(column) // 2 + 2].mean()).item())
    bulge = torch.tensor(bulge)
    shape = labels // 3
    assert bulge[shape == 0].median() > bulge[shape == 1].median() + 2
    assert bulge[shape == 0].median() > bulge[shape == 2].median() + 2
    holes = (depth == 0).double().mean()
    assert 0.005 < holes < 0.1
