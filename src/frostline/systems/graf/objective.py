"""The two players' losses: what each phase of the training minimises."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frostline.systems.graf.augmentation import augment
from frostline.systems.graf.camera import Poses
from frostline.systems.graf.discriminator import Discriminator, Verdict
from frostline.systems.graf.generator import Draw, Generator
from frostline.systems.graf.losses import fake_loss, is_penalised, label_loss, r1_penalty, real_loss
from frostline.training import Loss


@dataclass(frozen=True)
class Photographs:
    """Real images.

    Attributes:
        images: From -1 to 1, (B, 3, H, W), as large as the discriminator's or larger.
        classes: Int64 (B,).
        poses: Of B cameras.
    """

    images: Tensor
    classes: Tensor
    poses: Poses


def build_discriminator(generator: Generator) -> Discriminator:
    """The one that sees what this generator makes."""
    config = generator.config
    return Discriminator(config.discriminator, generator.output_size, config.field.num_classes)


def generator_loss(generator: Generator, discriminator: Discriminator, draw: Draw, *, step: int) -> Loss:
    """The generator's loss on one batch; autocast is left to the field.

    Args:
        generator: Trains.
        discriminator: Judges, and stays as it is.
        draw: What to render.
        step: Steps made so far: noise falls, and so does the published consistency.
    """
    config = generator.config
    with torch.autocast(draw.latents.device.type, enabled=False), standing_still(discriminator):
        rendering = generator(
            draw, noise_std=generator.renderer.noise_std(step), read_coarse=generator.coarse_field is not None
        )
        pictures = [rendering.image] if rendering.coarse is None else [rendering.image, rendering.coarse]
        verdicts = [judge(discriminator, shown(generator, picture, draw), draw) for picture in pictures]
        adversarial = torch.stack([real_loss(verdict.score) for verdict in verdicts]).mean()
        total, terms = adversarial, {"generator": adversarial}
        if config.discriminator.label_head == "mce":
            terms["generator_labels"] = labels = _label_loss(discriminator, verdicts[0], draw.classes, draw.poses)
            total = total + config.discriminator.label_weight * labels
        if config.ccsr.enabled and config.ccsr.loss == "consistency":
            terms["consistency"] = consistency = consistency_loss(generator, rendering.image, draw, step=step)
            total = total + consistency
        return Loss(total, terms)


def discriminator_loss(
    generator: Generator, discriminator: Discriminator, draw: Draw, real: Photographs, *, step: int
) -> Loss:
    """The discriminator's loss on one batch, in its own precision.

    Args:
        generator: Renders under `no_grad`, a few rays at a time.
        discriminator: Trains.
        draw: What to render, and which part of the real images to look at.
        real: As many as are rendered.
        step: Steps made so far: noise falls, and the penalty is due now and then.
    """
    config = generator.config.discriminator
    with torch.autocast(draw.latents.device.type, enabled=False):
        with torch.no_grad():
            rendering = generator(draw, noise_std=generator.renderer.noise_std(step))
            generated = shown(generator, rendering.image, draw)
        fake = judge(discriminator, generated, draw)
        seen = replace(draw.patch, size=generator.output_size)
        images = augment(seen.crop(real.images), draw.seeds, config, real=True)
        verdict = discriminator(images, real.classes, real.poses, draw.patch)
        terms = {"fake": fake_loss(fake.score), "real": real_loss(verdict.score)}
        total = terms["fake"] + terms["real"]
        if config.r1_weight > 0 and is_penalised(step, config.r1_every):
            terms["r1"] = penalty = r1_penalty(
                lambda images: discriminator(images, real.classes, real.poses, draw.patch).score, images
            )
            total = total + config.r1_weight * config.r1_every * penalty
        if config.label_head == "mce":
            terms["labels"] = labels = _label_loss(discriminator, verdict, real.classes, real.poses)
            total = total + config.label_weight * labels
        return Loss(total, terms)


def reconstruction_loss(generator: Generator, draw: Draw, real: Photographs, *, step: int) -> Loss:
    """The mean squared error of renderings to images of the same poses; there is one scene, and no latent code.

    Args:
        generator: Trains.
        draw: With the poses of the images, and the part of them to look at.
        real: The images.
        step: Steps made so far: noise falls.
    """
    with torch.autocast(draw.latents.device.type, enabled=False):
        draw = replace(draw, latents=torch.zeros_like(draw.latents))
        own = generator.coarse_field is not None
        rendering = generator(draw, noise_std=generator.renderer.noise_std(step), read_coarse=own)
        pictures = [rendering.image] if rendering.coarse is None else [rendering.image, rendering.coarse]
        target = replace(draw.patch, size=generator.output_size).crop(real.images)
        errors = [F.mse_loss(shown(generator, picture, draw), target) for picture in pictures]
        terms = {"squared_error": errors[0]}
        total = torch.stack(errors).sum()
        config = generator.config.ccsr
        if config.enabled and config.loss == "consistency":
            terms["consistency"] = consistency = consistency_loss(generator, rendering.image, draw, step=step)
            total = total + consistency
        return Loss(total, terms)


def shown(generator: Generator, images: Tensor, draw: Draw) -> Tensor:
    """What the discriminator sees of rendered images: they themselves, or super-resolution's result."""
    ccsr = generator.config.ccsr
    return generator.super_resolve(images, draw.poses) if ccsr.enabled and ccsr.loss == "adversarial" else images


def judge(discriminator: Discriminator, images: Tensor, draw: Draw) -> Verdict:
    """The discriminator on generated images, augmented if that is asked for."""
    images = augment(images, draw.seeds, discriminator.config)
    verdict: Verdict = discriminator(images, draw.classes, draw.poses, draw.patch)
    return verdict


def consistency_loss(generator: Generator, images: Tensor, draw: Draw, *, step: int) -> Tensor:
    """The published objective: the squared error of shrunken renderings brought back, weighted by exp(-decay x step).

    Args:
        generator: Whose super-resolution learns.
        images: Rendered, (B, 3, n, n); as the target, they are constants.
        draw: With their poses.
        step: Steps made so far.
    """
    weight = math.exp(-generator.config.ccsr.consistency_decay * step)
    return weight * F.mse_loss(generator.restore(images, draw.poses), images.detach())


@contextmanager
def standing_still(module: nn.Module) -> Iterator[None]:
    """Inside, a module passes gradients on and changes nothing of its own: no gradient, no statistics.

    What was recorded inside stays so after it.
    """
    training, trained = module.training, [parameter for parameter in module.parameters() if parameter.requires_grad]
    module.eval()
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        module.train(training)
        for parameter in trained:
            parameter.requires_grad_(True)


def _label_loss(discriminator: Discriminator, verdict: Verdict, classes: Tensor, poses: Poses) -> Tensor:
    assert verdict.labels is not None
    sectors = poses.sector(discriminator.label_groups[1])
    return label_loss(verdict.labels, (classes, sectors), discriminator.label_groups)
