"""Small generators, discriminators and draws for the tests of graf."""

from __future__ import annotations

from dataclasses import replace

import torch

from frostline.systems.graf import Generator, GrafSystemConfig, Photographs, Poses, build_discriminator
from frostline.systems.graf.config import CameraConfig, CcsrConfig, DiscriminatorConfig, FieldConfig, RenderingConfig

SMALL = GrafSystemConfig(
    camera=CameraConfig(image_size=8),
    field=FieldConfig(
        depth=3, width=16, skip_layer=1, latent_size=6, class_size=4, mapping_width=12, point_frequencies=3,
        direction_frequencies=2,
    ),
    rendering=RenderingConfig(num_samples=8, chunk_rays=10),
    ccsr=CcsrConfig(latent_size=4, width=6, num_views=4),
    discriminator=DiscriminatorConfig(channels=4, max_channels=8),
)  # fmt: skip


def small(**sections):
    """The small configuration with some keys of some sections changed: ``small(ccsr={"loss": "consistency"})``."""
    changed = {
        name: replace(getattr(SMALL, name), **keys) if isinstance(keys, dict) else keys
        for name, keys in sections.items()
    }
    return replace(SMALL, **changed)


def players(config=SMALL, dtype=torch.float64, precision="32-true"):
    """Generator and discriminator with the same initial weights every time."""
    torch.manual_seed(0)
    generator = Generator(config, precision).to(dtype)
    return generator, build_discriminator(generator).to(dtype)


def some_poses(num=3):
    return Poses.from_degrees(torch.arange(num) * 100.0 + 20, torch.arange(num) * 15.0 + 5)


def draw_of(generator, num=3, **options):
    """The same draw every time."""
    classes = torch.arange(num) % generator.config.field.num_classes
    return generator.draw(classes, some_poses(num), generator=torch.Generator().manual_seed(1), **options)


def photographs(generator, draw, side=None):
    side = side or generator.output_size
    numbers = torch.Generator().manual_seed(2)
    images = torch.rand(len(draw.classes), 3, side, side, generator=numbers) * 2 - 1
    return Photographs(images.to(draw.latents.dtype), draw.classes, draw.poses)


def worst(actual, expected):
    """Largest difference of two models' gradients over the largest entry of each; every gradient must be there."""
    pairs = zip(actual.named_parameters(), expected.parameters(), strict=True)
    differences = []
    for (name, one), other in pairs:
        assert (one.grad is None) == (other.grad is None), name
        if other.grad is not None:
            differences.append(float((one.grad - other.grad).abs().max() / other.grad.abs().max().clamp_min(1e-300)))
    return max(differences)


def without_gradient(module):
    return [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]
