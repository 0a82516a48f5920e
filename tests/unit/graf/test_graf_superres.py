from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from frostline.errors import ConfigError, ShapeError
from frostline.systems.graf import generator_loss
from frostline.systems.graf.config import CcsrConfig
from frostline.systems.graf.objective import consistency_loss
from frostline.systems.graf.superres import SuperResolution, project, shrink
from graf_parts import draw_of, players, small, some_poses, without_gradient


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-15), (torch.float32, 5e-7)])
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_pooling_the_result_gives_the_image_back(scale, dtype, tolerance):
    torch.manual_seed(0)
    net = SuperResolution(CcsrConfig(scale=scale, width=6, latent_size=5, num_views=3)).to(dtype)
    images = (torch.rand(3, 3, 7, 6) * 2 - 1).to(dtype)
    large = net(images, torch.tensor([0, 2, 1]))
    assert large.shape == (3, 3, 7 * scale, 6 * scale)
    assert (shrink(large, scale) - images).abs().max() <= tolerance
    if scale > 1:
        nearest = F.interpolate(images, scale_factor=scale)
        assert (large - nearest).abs().max() > 0.01


def test_the_projection_is_one_and_the_nearest():
    torch.manual_seed(0)
    large, small_image = torch.randn(2, 3, 8, 8).double(), torch.randn(2, 3, 4, 4).double()
    projected = project(large, small_image, 2)
    torch.testing.assert_close(project(projected, small_image, 2), projected, rtol=0, atol=1e-15)
    along = project(torch.randn(2, 3, 8, 8).double(), torch.zeros(2, 3, 4, 4).double(), 2)  # keeps all averages
    assert abs(float(((projected - large) * along).sum())) < 1e-12


@pytest.mark.parametrize("latent_size", [2, 4, 16])
def test_each_view_has_its_latent_image_and_every_entry_of_it_counts(latent_size):
    torch.manual_seed(0)
    net = SuperResolution(CcsrConfig(width=6, latent_size=latent_size, num_views=3)).double()
    images = torch.rand(2, 3, 4, 4).double()
    large = net(images, torch.tensor([0, 2]))
    assert not torch.allclose(large, net(images, torch.tensor([1, 2]))[:1])
    large.square().sum().backward()
    assert net.latents.grad[[0, 2]].abs().min() > 0 and not net.latents.grad[1].any()


def test_the_view_comes_from_the_azimuth():
    generator, _ = players()
    poses, images = some_poses(), torch.rand(3, 3, 8, 8).double()
    assert poses.sector(4).tolist() == [0, 1, 2]
    expected = generator.superres(images, torch.tensor([0, 1, 2]))
    assert torch.equal(generator.super_resolve(images, poses), expected)


def test_adversarial_gradients_reach_all_of_it_and_the_field():
    generator, discriminator = players()
    generator_loss(generator, discriminator, draw_of(generator, 4), step=0).total.backward()
    assert without_gradient(generator) == []
    assert len(list(generator.superres.parameters())) == 9
    assert all(p.grad is None and p.requires_grad for p in discriminator.parameters())


@pytest.mark.parametrize("field_gradient", [True, False])
def test_the_published_objective_trains_it_and_on_request_the_field(field_gradient):
    generator, _ = players(small(ccsr={"loss": "consistency", "field_gradient": field_gradient}))
    draw = draw_of(generator, 4)
    consistency_loss(generator, generator(draw).image, draw, step=0).backward()
    assert without_gradient(generator.superres) == []
    assert (without_gradient(generator.field) == []) == field_gradient
    if not field_gradient:
        assert all(p.grad is None for p in generator.field.parameters())


def test_the_published_objectives_value_and_weight():
    generator, discriminator = players(small(ccsr={"loss": "consistency", "consistency_decay": 0.01}))
    draw = draw_of(generator)
    loss = generator_loss(generator, discriminator, draw, step=100)
    image = generator(draw, noise_std=generator.renderer.noise_std(100)).image
    expected = (generator.superres(F.avg_pool2d(image, 2), draw.poses.sector(4)) - image).square().mean()
    assert float(loss.terms["consistency"].detach()) == pytest.approx(float(expected.detach()) * math.exp(-1))
    assert generator.output_size == 8 and generator.config.camera.image_size == 8


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"rays": {"sampler": "patch", "num_rays": 16}}, r"works on whole images, not on patches"),
        ({"ccsr": {"field_gradient": False}}, r"nothing trains it(.|\n)*field_gradient: true"),
        ({"ccsr": {"loss": "consistency", "scale": 3}}, r"8 pixels cannot be shrunk 3 times(.|\n)*multiple of 3"),
    ],
)
def test_what_cannot_be_is_an_error(config, text):
    with pytest.raises(ConfigError, match=text):
        players(small(**config))


def test_shapes_and_a_missing_head_are_named():
    generator, _ = players(small(ccsr={"enabled": False}))
    with pytest.raises(ConfigError, match="there is no super-resolution"):
        generator.super_resolve(torch.rand(3, 3, 8, 8), some_poses())
    with pytest.raises(ShapeError, match=r"the large image must have shape \(1, 3, 8, 8\)"):
        project(torch.zeros(1, 3, 8, 7), torch.zeros(1, 3, 4, 4), 2)
    with pytest.raises(ShapeError, match="a multiple of 2"):
        shrink(torch.zeros(1, 3, 5, 5), 2)
