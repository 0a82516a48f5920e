"""Solids from all round, with class and pose."""

import pytest
import torch

from frostline.scenes import SOLID_ELEVATIONS_DEGREES, SOLIDS, render_solids
from frostline.scenes.solids import _DISTANCES, _normals


def test_a_picture_is_a_function_of_its_number_alone():
    whole = render_solids(range(12), split="train", size=16)
    assert whole.images.shape == (12, 3, 16, 16) and whole.images.dtype == torch.uint8
    some = render_solids([7, 2], split="train", size=16)
    for mine, all_of_them in zip(some, whole, strict=True):
        assert torch.equal(mine, all_of_them[[7, 2]])
    for other in ({"split": "test"}, {"split": "train", "seed": 1}):
        assert not torch.equal(render_solids(range(12), size=16, **other).images, whole.images)
    assert [len(part) for part in render_solids([], split="train")] == [0, 0, 0, 0]


def test_labels_are_whole_degrees_of_every_class():
    labels = render_solids(range(400), split="train", size=1)
    assert labels.classes.bincount(minlength=len(SOLIDS)).min() > 70
    assert set(labels.elevation_degrees.tolist()) == set(SOLID_ELEVATIONS_DEGREES)
    assert torch.equal(labels.azimuth_degrees, labels.azimuth_degrees.round())
    assert labels.azimuth_degrees.min() < 10 and 350 < labels.azimuth_degrees.max() < 360


def test_every_solid_is_seen_whole_on_white():
    solids = render_solids(range(40), split="train", size=32)
    border = torch.cat([solids.images[..., 0, :], solids.images[..., -1, :], solids.images[..., 0]], -1)
    assert (border == 255).all()
    share = (solids.images < 255).any(1).double().mean((1, 2))
    assert (share > 0.08).all() and (share < 0.6).all()


@pytest.mark.parametrize("kind", range(len(SOLIDS)), ids=SOLIDS)
def test_distances_are_never_too_long(kind):
    """Marching may go as far as the distance says: no point changes its distance by more than it is moved."""
    numbers = torch.Generator().manual_seed(0)
    places = 2 * torch.rand(4000, 3, generator=numbers) - 1
    others = places + 0.1 * torch.randn(4000, 3, generator=numbers)
    distance = _DISTANCES[kind]
    assert ((distance(places) - distance(others)).abs() <= (places - others).norm(dim=-1) + 1e-5).all()
    assert (distance(places) < 0).any()
    surface = places[distance(places).abs() < 0.01]
    torch.testing.assert_close(_normals(distance, surface).norm(dim=-1), torch.ones(len(surface)))
