"""Rendering a few rays at a time against rendering all at once, and the published cut against neither."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from frostline.gradflow import audit
from frostline.memory import measure
from frostline.proof import compare_gradients, gradients_of, noise_floor
from frostline.systems.graf import discriminator_loss, generator_loss
from frostline.systems.graf.reference import published_loss
from graf_parts import SMALL, draw_of, photographs, players, small, without_gradient, worst

FORMS = pytest.mark.parametrize("recompute", ["deferred", "checkpointed"])
WAYS = {
    "plain": {},
    "importance": {"num_importance": 5},
    "coarse of its own": {"num_importance": 5, "coarse": "own", "background": "black"},
}


def stepped(dtype=torch.float64, precision="32-true", rendering=None, num=3, **sections):
    """The generator behind one step of its loss."""
    generator, discriminator = players(small(rendering=rendering or {}, **sections), dtype, precision)
    loss = generator_loss(generator, discriminator, draw_of(generator, num), step=100)
    loss.total.backward()
    return generator, loss.total.detach()


@pytest.mark.parametrize("chunk_rays", [10, 100])
@pytest.mark.parametrize("way", WAYS)
@FORMS
def test_whole_image_gradients_are_those_of_one_call(recompute, way, chunk_rays):
    plain, plain_loss = stepped(rendering={"chunk_rays": 0, **WAYS[way]})
    assert without_gradient(plain) == []
    keys = {"chunk_rays": chunk_rays, "recompute": recompute, **WAYS[way]}
    treated, treated_loss = stepped(rendering=keys)
    assert worst(treated, plain) <= 1e-12
    torch.testing.assert_close(treated_loss, plain_loss, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    "sections",
    [
        {"field": {"conditioning": "adaln"}},
        {"ccsr": {"loss": "consistency"}},
        {"ccsr": {"enabled": False}, "rays": {"sampler": "patch", "num_rays": 25}},
    ],
    ids=["adaln", "consistency", "patch"],
)
@FORMS
def test_other_configurations(recompute, sections):
    plain, _ = stepped(rendering={"chunk_rays": 0}, **sections)
    treated, _ = stepped(rendering={"recompute": recompute}, **sections)
    assert worst(treated, plain) <= 1e-12


@FORMS
def test_fp32_is_exact_in_one_chunk_and_rounding_in_several(recompute):
    plain, truth = (gradients_of(stepped(dtype, rendering={"chunk_rays": 0})[0]) for dtype in
                    (torch.float32, torch.float64))  # fmt: skip
    floor = noise_floor(plain, truth)
    assert 0 < floor < 1e-4
    for chunk_rays, classes in ((1000, ("EXACT",)), (10, ("ROUNDING",))):
        treated = gradients_of(stepped(torch.float32, rendering={"chunk_rays": chunk_rays, "recompute": recompute})[0])
        assert compare_gradients(plain, treated, floor=floor).proof_class in classes


@pytest.mark.parametrize("way", WAYS)
@FORMS
def test_half_precision_chunks_are_half_precisions_own_step(recompute, way):
    """Also where the field first looks under `no_grad`: autocast must not keep that copy of its weights."""
    single, half = torch.float32, "bf16-mixed"
    plain, _ = stepped(single, half, {"chunk_rays": 0, **WAYS[way]})
    treated, _ = stepped(single, half, {"chunk_rays": 30, "recompute": recompute, **WAYS[way]})
    exact, _ = stepped(single, rendering={"chunk_rays": 0, **WAYS[way]})
    assert without_gradient(treated.field) == []
    pairs = [
        torch.cat([p.grad.flatten() for p in model.field.parameters()]).double() for model in (treated, plain, exact)
    ]
    treated_error, plain_error = ((gradient - pairs[2]).norm() for gradient in pairs[:2])
    assert 0 < treated_error <= 1.5 * plain_error < 0.2 * pairs[2].norm()


@FORMS
def test_a_loop_without_recompute_is_the_same_step(recompute):
    plain, _ = stepped(rendering={"chunk_rays": 10, "recompute": "none"})
    treated, _ = stepped(rendering={"recompute": recompute})
    assert worst(treated, plain) <= 1e-12


def test_gradients_accumulate_over_batches():
    generator, discriminator = players()
    for num in (2, 3):
        generator_loss(generator, discriminator, draw_of(generator, num), step=100).total.backward()
    apart = [gradients_of(stepped(num=num)[0]) for num in (2, 3)]
    for name, gradient in gradients_of(generator).items():
        torch.testing.assert_close(gradient, apart[0][name] + apart[1][name], rtol=1e-11, atol=1e-16)


def test_images_without_gradient_are_the_same_and_keep_nothing():
    generator, _ = players()
    draw = draw_of(generator)
    with torch.no_grad():
        sampled = generator(draw)
    rendered = generator(draw)
    assert rendered.image.requires_grad and not sampled.image.requires_grad
    for one, other in ((sampled.image, rendered.image), (sampled.depth, rendered.depth)):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)
    assert sampled.image.shape == (3, 3, 8, 8) and sampled.depth.shape == sampled.accumulation.shape == (3, 1, 8, 8)
    assert (1.5 <= sampled.depth).all() and (sampled.depth <= 3.5).all() and (sampled.image.abs() <= 1).all()


def peak(image_size, **rendering):
    generator, _ = players(
        small(camera={"image_size": image_size}, rendering=rendering, ccsr={"enabled": False}, field={"width": 64}),
        torch.float32,
    )
    draw = draw_of(generator, 1)

    def step():
        generator(draw).image.sum().backward()

    return measure(step, generator, inputs=(draw.latents, draw.seeds)).peak_bytes


@FORMS
def test_the_peak_does_not_grow_with_the_image(recompute):
    small_peak, large_peak = (peak(size, chunk_rays=8, recompute=recompute) for size in (4, 8))
    assert large_peak - small_peak <= 48 * 250  # bytes a ray: its numbers, its colour, their gradients


def test_chunks_without_recompute_save_little_in_training():
    naive, loop, frostline = (
        peak(8, chunk_rays=0), peak(8, chunk_rays=8, recompute="none"), peak(8, chunk_rays=8)
    )  # fmt: skip
    assert naive > 2.5 * frostline and loop > 0.9 * naive


@pytest.mark.parametrize("loss", ["consistency", "adversarial"])
def test_the_published_advice_trains_no_super_resolution(loss):
    generator, discriminator = players(small(ccsr={"loss": loss}))
    objective = published_loss(generator, discriminator, draw_of(generator, 4)).total
    assert objective.requires_grad
    objective.backward()
    assert len(without_gradient(generator.superres)) == 9
    trained = [p for p in generator.field.parameters() if p.grad is not None and p.grad.any()]
    assert bool(trained) == (loss == "consistency")
    plain, _ = stepped(num=4, ccsr={"loss": loss})
    assert without_gradient(plain) == []


@pytest.mark.parametrize("player", ["generator", "discriminator"])
def test_the_audit_has_nothing_to_say(player):
    generator, discriminator = players(SMALL, torch.float32)
    both = nn.ModuleDict({"generator": generator, "discriminator": discriminator})
    draw = draw_of(generator, 4)
    real = photographs(generator, draw)
    optimizer = torch.optim.Adam(both[player].parameters(), lr=1e-3)

    def step():
        optimizer.zero_grad()
        if player == "generator":
            loss = generator_loss(generator, discriminator, draw, step=0).total
        else:
            loss = discriminator_loss(generator, discriminator, draw, real, step=0).total
        loss.backward()
        optimizer.step()
        return loss

    report = audit(step, both, (optimizer,))
    assert [finding for finding in report.findings if finding.level != "note"] == []
