"""The published way to train super-resolution behind a radiance field, to be measured."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from frostline.systems.graf.discriminator import Discriminator
from frostline.systems.graf.generator import Draw, Generator
from frostline.systems.graf.losses import real_loss
from frostline.systems.graf.objective import judge, standing_still
from frostline.training import Loss


def published_loss(generator: Generator, discriminator: Discriminator, draw: Draw) -> Loss:
    """The published advice: super-resolution under `no_grad`, its result re-attached by ``requires_grad_(True)``.

    The result is a new leaf: the loss goes on falling, as its weight does, and the super-resolution learns nothing;
    where the discriminator sees it, the field does not either. Autocast is the caller's.

    Args:
        generator: Whose super-resolution stands still.
        discriminator: Judges, and stays as it is.
        draw: What to render.
    """
    adversarial = generator.config.ccsr.loss == "adversarial"
    image = generator(draw).image
    with torch.no_grad():
        result = (generator.super_resolve if adversarial else generator.restore)(image, draw.poses)
    result.requires_grad_(True)
    with standing_still(discriminator):
        verdict = judge(discriminator, result if adversarial else image, draw)
    loss = real_loss(verdict.score)
    terms = {"generator": loss}
    if not adversarial:
        terms["consistency"] = consistency = F.mse_loss(result.float(), image.detach().float())
        loss = loss + consistency
    return Loss(loss, terms)
