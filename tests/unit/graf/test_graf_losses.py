from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from frostline.errors import ConfigError, ShapeError, StepError
from frostline.systems.graf import Discriminator, Patch, discriminator_loss, generator_loss
from frostline.systems.graf.config import DiscriminatorConfig
from frostline.systems.graf.losses import fake_loss, is_penalised, label_loss, r1_penalty, real_loss
from frostline.systems.graf.objective import standing_still
from graf_parts import SMALL, draw_of, photographs, players, small, some_poses, without_gradient


def test_the_players_losses_by_hand():
    scores = torch.tensor([0.0, 2.0]).double()
    assert float(real_loss(scores)) == pytest.approx((math.log(2) + math.log(1 + math.exp(-2))) / 2)
    assert float(fake_loss(scores)) == pytest.approx((math.log(2) + math.log(1 + math.exp(2))) / 2)
    assert real_loss(scores.bfloat16()).dtype == torch.float32


def test_r1_is_a_sum_over_each_image_and_a_mean_over_images():
    weight = torch.randn(3, 8, 8).double()
    for num in (1, 5):
        images = torch.randn(num, 3, 8, 8).double()
        penalty = r1_penalty(lambda x: (x * weight).sum((1, 2, 3)), images)
        assert float(penalty) == pytest.approx(0.5 * float(weight.square().sum()))


def test_r1_trains_the_weights_and_leaves_autocast():
    weight = torch.randn(192).requires_grad_()
    images = torch.randn(4, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        penalty = r1_penalty(lambda x: x.flatten(1) @ weight, images.bfloat16())
    assert penalty.dtype == torch.float32
    penalty.backward()
    torch.testing.assert_close(weight.grad, weight.detach())


def test_r1_asks_for_one_number_an_image():
    images = torch.randn(4, 3, 2, 2)
    with pytest.raises(ShapeError, match=r"the scores must have shape \(4\), got \(4, 3\)"):
        r1_penalty(lambda x: x.sum((2, 3)), images)
    with pytest.raises(StepError, match="the score has no graph"):
        r1_penalty(lambda x: x.sum((1, 2, 3)).detach(), images)
    weight = torch.ones(4, requires_grad=True)
    with pytest.raises(StepError, match="does not depend on the images"):
        r1_penalty(lambda x: weight * 2, images)


def test_lazy_penalties_count_as_often_as_they_are_left_out():
    assert [step for step in range(40) if is_penalised(step, 16)] == [0, 16, 32]
    generator, discriminator = players()
    draw = draw_of(generator)
    real = photographs(generator, draw)
    due, not_due = (discriminator_loss(generator, discriminator, draw, real, step=step) for step in (16, 17))
    assert "r1" in due.terms and "r1" not in not_due.terms
    rest = due.terms["fake"] + due.terms["real"] + 16 * 10 * due.terms["r1"]
    torch.testing.assert_close(due.total, rest)


def test_label_loss_is_the_sum_of_the_groups_cross_entropies():
    logits, classes, sectors = torch.randn(5, 7), torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0, 3, 2, 1, 0])
    expected = F.cross_entropy(logits[:, :3], classes) + F.cross_entropy(logits[:, 3:], sectors)
    torch.testing.assert_close(label_loss(logits, (classes, sectors), (3, 4)), expected)
    with pytest.raises(ShapeError, match="7 for 2 groups"):
        label_loss(logits[:, :6], (classes, sectors), (3, 4))


@pytest.mark.parametrize("norm", ["spectral", "instance", "none"])
def test_an_images_score_is_its_own(norm):
    """No batch statistics: neither score nor gradient at one image depends on the others."""
    torch.manual_seed(0)
    discriminator = Discriminator(DiscriminatorConfig(channels=4, norm=norm), 16, 4).double().eval()
    images, classes, poses = torch.randn(3, 3, 16, 16).double(), torch.tensor([0, 1, 2]), some_poses()
    images.requires_grad_()

    def score(images):
        return discriminator(images, classes, poses, Patch.whole(16, 3)).score

    changed = torch.cat([images[:1], torch.randn(2, 3, 16, 16).double()])
    assert torch.allclose(score(images)[0], score(changed)[0], rtol=1e-12)
    (slope,) = torch.autograd.grad(score(images)[0], images)
    assert slope[0].any() and not slope[1:].any()
    assert not any("BatchNorm" in type(part).__name__ for part in discriminator.modules())


@pytest.mark.parametrize("what", ["class", "azimuth", "elevation", "place"])
def test_the_score_depends_on(what):
    torch.manual_seed(0)
    discriminator = Discriminator(SMALL.discriminator, 16, 4).double().eval()
    images, poses, patch = torch.randn(3, 3, 16, 16).double(), some_poses(), Patch.whole(16, 3)
    before = discriminator(images, torch.tensor([0, 1, 2]), poses, patch).score
    classes = torch.tensor([0, 1, 3] if what == "class" else [0, 1, 2])
    turned = {"azimuth": poses.azimuth + 1, "elevation": poses.elevation + 0.3}
    if what in turned:
        poses = type(poses)(**{"azimuth": poses.azimuth, "elevation": poses.elevation, what: turned[what]})
    if what == "place":
        patch = Patch(16, torch.full((3,), 0.5), torch.full((3, 2), 0.5))
    after = discriminator(images, classes, poses, patch).score
    assert not torch.allclose(before[2], after[2])


@pytest.mark.parametrize("size", [4, 5, 12, 33])
def test_any_image_of_4_pixels_or_more_can_be_judged(size):
    discriminator = Discriminator(DiscriminatorConfig(channels=4, max_channels=8), size, 4)
    images = torch.randn(3, 3, size, size)
    assert discriminator(images, torch.tensor([0, 1, 2]), some_poses(), Patch.whole(size, 3)).score.shape == (3,)
    with pytest.raises(ShapeError, match=rf"the images must have shape \(3, 3, {size}, {size}\)"):
        discriminator(images[..., 1:], torch.tensor([0, 1, 2]), some_poses(), Patch.whole(size, 3))


def test_an_image_of_3_pixels_cannot():
    with pytest.raises(ConfigError, match="3 pixels is too small"):
        Discriminator(DiscriminatorConfig(), 3, 4)


@pytest.mark.parametrize("label_head", ["none", "mce"])
def test_every_parameter_of_the_discriminator_trains_in_its_phase(label_head):
    generator, discriminator = players(small(discriminator={"label_head": label_head}))
    draw = draw_of(generator)
    loss = discriminator_loss(generator, discriminator, draw, photographs(generator, draw), step=0)
    loss.total.backward()
    assert without_gradient(discriminator) == []
    assert ("labels" in loss.terms) == (label_head == "mce")
    assert all(p.grad is None for p in generator.parameters())


def test_the_label_head_trains_the_generator_too():
    generator, discriminator = players(small(discriminator={"label_head": "mce"}))
    loss = generator_loss(generator, discriminator, draw_of(generator), step=0)
    loss.terms["generator_labels"].backward()
    assert generator.field.density.weight.grad.any()
    torch.testing.assert_close(loss.total, loss.terms["generator"] + loss.terms["generator_labels"])


def test_the_generators_phase_leaves_the_discriminator_as_it_is():
    generator, discriminator = players()
    before = {name: value.clone() for name, value in discriminator.state_dict().items()}
    draw = draw_of(generator)
    generator_loss(generator, discriminator, draw, step=0).total.backward()
    assert all(torch.equal(value, before[name]) for name, value in discriminator.state_dict().items())
    assert discriminator.training and all(p.requires_grad and p.grad is None for p in discriminator.parameters())
    frozen = discriminator.score.parametrizations.weight.original.requires_grad_(False)
    with standing_still(discriminator.eval()):
        assert not any(p.requires_grad for p in discriminator.parameters())
    assert not discriminator.training and not frozen.requires_grad


def test_real_images_larger_than_the_discriminators_are_interpolated():
    config = small(ccsr={"enabled": False}, rays={"sampler": "patch", "num_rays": 16, "scale_anneal_steps": 0})
    generator, discriminator = players(config)
    draw = draw_of(generator)
    loss = discriminator_loss(generator, discriminator, draw, photographs(generator, draw, side=20), step=1)
    assert generator.output_size == 4 and torch.isfinite(loss.total)
