"""The published faults, put back: the audit names them."""

import pytest
import torch
from torch import nn

from frostline.errors import ShapeError
from frostline.gradflow import audit
from frostline.systems.graf.losses import r1_penalty, real_loss
from frostline.systems.graf.objective import judge, shown, standing_still
from frostline.systems.graf.reference import published_loss
from graf_parts import draw_of, players, small


def found_in(config, loss_of):
    """Faults of one step of the generator, by code."""
    generator, discriminator = players(config, torch.float32)
    both = nn.ModuleDict({"generator": generator, "discriminator": discriminator})
    draw, optimizer = draw_of(generator, 4), torch.optim.SGD(generator.parameters(), lr=1e-3)

    def step():
        optimizer.zero_grad()
        loss = loss_of(generator, discriminator, draw)
        loss.backward()
        optimizer.step()
        return loss

    report = audit(step, both, (optimizer,))
    return {finding.code: str(finding) for finding in report.faults}


@pytest.mark.parametrize(
    ("loss", "who"), [("adversarial", "'generator.*' (28 param"), ("consistency", "'generator.superres.*' (9 param")]
)
def test_super_resolution_that_is_re_attached(loss, who):
    def published(generator, discriminator, draw):
        return published_loss(generator, discriminator, draw).total

    fault = found_in(small(ccsr={"loss": loss}), published)["FL107"]
    assert who in fault and "re-attached" in fault and "no_grad" in fault


@pytest.mark.parametrize(("chunk_rays", "code"), [(0, "FL101"), (16, "FL116")])
def test_a_coarse_field_that_no_loss_reads(chunk_rays, code):
    kept = []

    def loss(generator, discriminator, draw):
        rendering = generator(draw, read_coarse=True)
        kept[:] = [rendering.coarse]
        with standing_still(discriminator):
            return real_loss(judge(discriminator, shown(generator, rendering.image, draw), draw).score)

    config = small(rendering={"num_importance": 4, "coarse": "own", "chunk_rays": chunk_rays})
    assert "'generator.coarse_field.*'" in found_in(config, loss)[code]


def test_a_penalty_of_rays_instead_of_images_is_refused():
    """The published one was a mean over (images x rays, 3): too weak by the number of rays."""
    with pytest.raises(ShapeError, match=r"the scores must have shape \(48\), got \(3\)"):
        r1_penalty(lambda rays: rays.reshape(3, -1).sum(1), torch.zeros(3 * 16, 3))
