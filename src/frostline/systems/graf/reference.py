"""The plain radiance field, and the published way to train super-resolution behind one, to be measured."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frostline.systems.graf.discriminator import Discriminator
from frostline.systems.graf.field import Field, modulate, summed
from frostline.systems.graf.generator import Draw, Generator
from frostline.systems.graf.losses import real_loss
from frostline.systems.graf.objective import judge, standing_still
from frostline.training import Loss


class PlainField(Field):
    """A field as its definition reads: every layer's values are made, kept, and then scaled and shifted."""

    def layer(self, inputs: list[tuple[nn.Linear, Tensor]], scale: Tensor, shift: Tensor) -> Tensor:
        """The same as `Field.layer`, one operation after the other."""
        values = summed(inputs)
        if self.config.conditioning == "adaln":
            values = F.layer_norm(values, values.shape[-1:]).to(values.dtype)
        return modulate(values, 1 + scale, shift)


class PlainGenerator(Generator):
    """A generator of such fields, with the same weights from the same seed."""

    field_type = PlainField


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
