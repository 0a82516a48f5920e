from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from frostline.systems.graf.camera import Rays
from frostline.systems.graf.config import RenderingConfig
from frostline.systems.graf.field import Matter
from frostline.systems.graf.noise import ray_seeds
from frostline.systems.graf.rendering import Renderer

NEAR, FAR = 1.5, 3.5
SEEDS = ray_seeds(torch.arange(2) + 7, 5)


def renderer(**keys):
    return Renderer(RenderingConfig(**{"bound_radius": 0.0, "density_scale": 1.0, **keys}), NEAR, FAR)


class Slab(nn.Module):
    """A field of one density between two planes of z, and of one colour."""

    def __init__(self, raw, low=-10.0, high=10.0):
        super().__init__()
        self.raw = nn.Parameter(torch.tensor(raw, dtype=torch.float64))
        self.low, self.high = low, high

    def forward(self, points, directions, styles):
        inside = (points[..., 2] > self.low) & (points[..., 2] < self.high)
        return Matter(torch.full_like(points, 0.4), torch.where(inside, self.raw, -1e9))


def rays_down():
    """Straight down from height 2.5, so that distance t is at height 2.5 - t."""
    origins = torch.tensor([0.0, 0.0, 2.5]).double().expand(2, 5, 3)
    return Rays(origins, torch.tensor([0.0, 0.0, -1.0]).double().expand(2, 5, 3))


@pytest.mark.parametrize("jitter", [True, False])
@pytest.mark.parametrize("num", [1, 2, 7, 64])
def test_weights_of_a_constant_density_are_the_closed_form(num, jitter):
    draw, density = renderer(), 0.8
    distances = draw.stratified(SEEDS, num, jitter=jitter, dtype=torch.float64)
    edges = draw.edges(distances)
    weights = draw.weights(torch.full_like(distances, density), distances)
    expected = torch.exp(-density * (edges[..., :-1] - NEAR)) - torch.exp(-density * (edges[..., 1:] - NEAR))
    torch.testing.assert_close(weights, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(weights.sum(-1), torch.full((2, 5), 1 - math.exp(-density * (FAR - NEAR))).double())
    assert edges[..., 0].unique().tolist() == [NEAR] and edges[..., -1].unique().tolist() == [FAR]


def test_a_slab_that_fills_the_ray_has_the_closed_form_of_depth_colour_and_gradient():
    draw, raw = renderer(num_samples=2000), 0.7
    field = Slab(raw)
    pixels, coarse = draw.render(field, torch.zeros(2, 2, 0), rays_down(), SEEDS, jitter=False)
    density = math.log1p(math.exp(raw - 1))  # softplus(raw - 1)
    length = FAR - NEAR
    stopped = 1 - math.exp(-density * length)
    assert coarse is None
    assert pixels.accumulation.tolist() == [pytest.approx([stopped] * 5, rel=1e-12)] * 2
    assert pixels.depth.tolist() == [pytest.approx([NEAR + stopped / density] * 5, rel=1e-6)] * 2
    colour = 1 / (1 + math.exp(-0.4))
    assert pixels.colour[0, 0].tolist() == pytest.approx([2 * (stopped * colour + 1 - stopped) - 1] * 3, rel=1e-12)
    pixels.accumulation.sum().backward()
    slope = length * math.exp(-density * length) / (1 + math.exp(1 - raw))
    assert float(field.raw.grad) == pytest.approx(10 * slope, rel=1e-12)


@pytest.mark.parametrize("background", ["black", "white"])
def test_a_ray_that_meets_nothing_shows_the_background(background):
    field = Slab(5.0, low=90.0, high=91.0)
    pixels, _ = renderer(background=background).render(field, torch.zeros(2, 2, 0), rays_down(), SEEDS)
    assert pixels.colour.unique().tolist() == [1.0 if background == "white" else -1.0]
    assert not pixels.accumulation.any() and pixels.depth.unique().tolist() == [FAR]


def test_an_opaque_slab_is_met_at_its_surface():
    field = Slab(1e4, low=-1.0, high=0.5)  # its upper side is 2 below the camera
    pixels, _ = renderer(num_samples=200, background="black").render(field, torch.zeros(2, 2, 0), rays_down(), SEEDS)
    assert (pixels.depth - 2).abs().max() < 0.02 and pixels.accumulation.min() > 1 - 1e-12


def test_nothing_is_outside_the_bound():
    field = Slab(1e4)
    pixels, _ = renderer(bound_radius=0.6, num_samples=200).render(field, torch.zeros(2, 2, 0), rays_down(), SEEDS)
    assert (pixels.depth - 1.9).abs().max() < 0.02


def test_stratified_samples_lie_one_in_each_part_and_are_evenly_spread():
    draw = renderer()
    seeds = ray_seeds(torch.arange(40), 50)
    parts = (draw.stratified(seeds, 16, jitter=True, dtype=torch.float64) - NEAR) / (FAR - NEAR) * 16
    inside = parts - torch.arange(16)
    assert inside.min() > 0 and inside.max() < 1
    assert abs(float(inside.mean()) - 0.5) < 0.01 and abs(float(inside.var()) - 1 / 12) < 0.005
    middles = draw.stratified(seeds, 4, jitter=False, dtype=torch.float64)
    assert middles[3, 4].tolist() == pytest.approx([1.75, 2.25, 2.75, 3.25])


def test_importance_samples_are_distributed_as_the_weights():
    draw = renderer()
    seeds = ray_seeds(torch.arange(4), 50)
    distances = draw.stratified(seeds, 4, jitter=False, dtype=torch.float64)  # cells of 0.5
    weights = torch.tensor([0.1, 0.0, 0.6, 0.1]).double().expand(4, 50, 4)
    edges = draw.edges(distances)
    for jitter in (True, False):
        more = draw.important(distances, weights, seeds, 32, jitter=jitter)
        cell = torch.searchsorted(edges, more) - 1
        shares = torch.bincount(cell.flatten(), minlength=4) / cell.numel()
        assert shares.tolist() == pytest.approx([0.125, 0.0, 0.75, 0.125], abs=0.03)
    even = draw.important(distances, torch.zeros_like(weights), seeds, 4, jitter=False)
    assert even[0, 0].tolist() == pytest.approx([1.75, 2.25, 2.75, 3.25])


def test_importance_sampling_finds_a_thin_slab():
    field = Slab(1e4, low=-0.31, high=-0.29)  # thinner than a sixteenth of the ray
    plain, _ = renderer(num_samples=16).render(field, torch.zeros(2, 2, 0), rays_down(), SEEDS, jitter=False)
    twice, _ = renderer(num_samples=64, num_importance=64).render(
        field, torch.zeros(2, 2, 0), rays_down(), SEEDS, jitter=False
    )
    assert not plain.accumulation.any()
    assert (twice.depth - 2.79).abs().max() < 0.02


def test_a_coarse_field_trains_on_its_own_picture_and_keeps_nothing_where_nobody_reads_it():
    draw = renderer(num_samples=8, num_importance=8)
    field, coarse = Slab(0.5), Slab(0.2)
    rays, styles = rays_down(), torch.zeros(2, 2, 0)
    pixels, picture = draw.render(field, styles, rays, SEEDS, coarse=(coarse, styles), read_coarse=True)
    (pixels.accumulation.sum() + picture.sum()).backward()
    assert field.raw.grad and coarse.raw.grad
    coarse.raw.grad = None
    pixels, picture = draw.render(field, styles, rays, SEEDS, coarse=(coarse, styles))
    pixels.accumulation.sum().backward()
    assert picture is None and coarse.raw.grad is None


def test_noise_on_densities_falls_to_zero():
    draw = renderer(density_noise=2.0, density_noise_steps=100)
    assert [draw.noise_std(step) for step in (0, 50, 100, 500)] == [2.0, 1.0, 0.0, 0.0]
    assert renderer(density_noise_steps=0).noise_std(0) == 0.0
    field, rays, styles = Slab(0.5), rays_down(), torch.zeros(2, 2, 0)
    calm, noisy = (draw.render(field, styles, rays, SEEDS, noise_std=std)[0].accumulation for std in (0.0, 1.0))
    assert calm.std() < 1e-12 and noisy.std() > 1e-3
