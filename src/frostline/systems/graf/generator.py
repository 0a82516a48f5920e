"""The generator: latent code, class and pose in, image out. All that trains on its side is in this one module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from frostline.errors import ConfigError, ShapeError
from frostline.ops import chunked_map, deferred_map
from frostline.systems.graf.camera import Camera, Poses, Rays
from frostline.systems.graf.config import GrafSystemConfig
from frostline.systems.graf.field import Field
from frostline.systems.graf.noise import ray_seeds
from frostline.systems.graf.rays import Patch, RaySampler
from frostline.systems.graf.rendering import Renderer
from frostline.systems.graf.superres import SuperResolution, shrink
from frostline.training import Precision


@dataclass(frozen=True)
class Draw:
    """What one batch of images is made from.

    Attributes:
        latents: Standard normal, (B, Z).
        classes: Int64 (B,).
        poses: Of B cameras.
        patch: The points to render.
        seeds: Of the places and noise of each image, int64 (B,).
    """

    latents: Tensor
    classes: Tensor
    poses: Poses
    patch: Patch
    seeds: Tensor


@dataclass(frozen=True)
class Rendering:
    """What the field shows.

    Attributes:
        image: From -1 to 1, (B, 3, n, n).
        depth: (B, 1, n, n); see `Pixels`.
        accumulation: (B, 1, n, n).
        coarse: The coarse field's own picture (B, 3, n, n), where it was asked for.
    """

    image: Tensor
    depth: Tensor
    accumulation: Tensor
    coarse: Tensor | None = None


class Generator(nn.Module):
    """A radiance field, what finds its dense places, and super-resolution.

    Rays go through the field a few at a time and come back in backward (`rendering.chunk_rays`, `recompute`), so that
    the peak does not grow with their number; noise is a function of its seed, so that gradients are those of one call.

    Args:
        config: Of the whole system.
        precision: Autocast type of the field's MLP; everything else keeps its own.

    Attributes:
        field_type: What its fields are.
        chunk_rays: As configured; it may be set to another number between two calls.
        recompute: Likewise.

    Raises:
        ConfigError: Values that make no generator.
    """

    field_type: ClassVar[type[Field]] = Field

    def __init__(self, config: GrafSystemConfig, precision: Precision = "32-true") -> None:
        super().__init__()
        _check(config)
        self.config = config
        self.chunk_rays, self.recompute = config.rendering.chunk_rays, config.rendering.recompute
        self.camera = Camera(config.camera)
        self.sampler = RaySampler(config.rays, config.camera.image_size)
        self.renderer = Renderer(config.rendering, config.camera.near, config.camera.far)
        self.field = self.field_type(config.field, precision)
        own = config.rendering.num_importance > 0 and config.rendering.coarse == "own"
        self.coarse_field = self.field_type(config.field, precision) if own else None
        self.superres = SuperResolution(config.ccsr) if config.ccsr.enabled else None

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return self.field.density.weight.dtype

    @property
    def output_size(self) -> int:
        """Height and width of the images that the discriminator sees."""
        return self.sampler.size * self._enlargement

    @property
    def whole_size(self) -> int:
        """Height and width of whole images, of which the discriminator may see patches."""
        return self.camera.image_size * self._enlargement

    @property
    def _enlargement(self) -> int:
        return self.config.ccsr.scale if self.superres is not None and self.config.ccsr.loss == "adversarial" else 1

    def draw(
        self,
        classes: Tensor,
        poses: Poses,
        *,
        step: int = 0,
        patch: Patch | None = None,
        generator: torch.Generator | None = None,
    ) -> Draw:
        """Draw what is random about some images, on the CPU, so that a run's numbers do not depend on its device.

        Args:
            classes: Of the images, int64 (B,).
            poses: Of the images.
            step: Steps made so far: patches shrink.
            patch: The points, where they are not to be drawn.
            generator: torch's own if left out.
        """
        num, device = len(classes), classes.device
        latents = torch.randn(num, self.config.field.latent_size, generator=generator)
        seeds = torch.randint(2**62, (num,), generator=generator)
        patch = patch or self.sampler.draw(num, step=step, generator=generator, device=device)
        return Draw(latents.to(device, self.dtype), classes, poses, patch, seeds.to(device))

    def forward(
        self,
        draw: Draw,
        *,
        noise_std: float = 0.0,
        read_coarse: bool = False,
        jitter: bool = True,
        num_samples: int = 0,
    ) -> Rendering:
        """Render.

        Args:
            draw: What.
            noise_std: Of the noise on densities.
            read_coarse: Whether a loss reads the coarse field's picture; there must be one.
            jitter: Sample at random places; False for samples to look at.
            num_samples: Stratified ones a ray, instead of the configured number.
        """
        if read_coarse and self.coarse_field is None:
            raise ConfigError(
                "there is no coarse field whose picture could be read",
                where="--system.rendering.num-importance, --system.rendering.coarse",
                do="take num-importance above 0 and coarse: own",
            )
        rays = self.camera.rays(draw.poses, draw.patch.points())
        rays = Rays(*(part.to(draw.latents.dtype) for part in rays))
        fields = [self.field] if self.coarse_field is None else [self.field, self.coarse_field]
        read = fields if read_coarse else fields[:1]
        styles = tuple(field.styles(draw.latents, draw.classes) for field in fields)
        seeds = ray_seeds(draw.seeds, rays.origins.shape[1])

        def render(origins: Tensor, directions: Tensor, seeds: Tensor, *styles: Tensor) -> tuple[Tensor, ...]:
            pixels, coarse = self.renderer.render(
                self.field,
                styles[0],
                Rays(origins, directions),
                seeds,
                coarse=(self.coarse_field, styles[1]) if self.coarse_field is not None else None,
                read_coarse=read_coarse,
                noise_std=noise_std,
                jitter=jitter,
                num_samples=num_samples,
            )
            scalars = torch.stack([pixels.depth, pixels.accumulation], -1)
            return (pixels.colour, scalars) if coarse is None else (pixels.colour, scalars, coarse)

        with torch.autocast(draw.latents.device.type, enabled=False):
            trained = [parameter for field in read for parameter in field.parameters()]
            colour, scalars, *coarse = self._map(render, (*rays, seeds), styles, trained)
        size = draw.patch.size
        depth, accumulation = _image(scalars, size).split(1, 1)
        return Rendering(_image(colour, size), depth, accumulation, _image(coarse[0], size) if coarse else None)

    def super_resolve(self, images: Tensor, poses: Poses) -> Tensor:
        """Enlarge whole rendered images (B, 3, n, n) to (B, 3, s n, s n).

        Raises:
            ConfigError: There is no super-resolution.
        """
        if self.superres is None:
            raise ConfigError("there is no super-resolution", where="--system.ccsr.enabled", do="give true")
        if not self.config.ccsr.field_gradient:
            images = images.detach()
        enlarged: Tensor = self.superres(images, poses.sector(self.config.ccsr.num_views))
        return enlarged

    def restore(self, images: Tensor, poses: Poses) -> Tensor:
        """Shrink whole rendered images and enlarge them again, (B, 3, n, n): the published objective's way."""
        return self.super_resolve(shrink(images, self.config.ccsr.scale), poses)

    def _map(self, render: Any, inputs: tuple[Tensor, ...], shared: tuple[Tensor, ...], parameters: Any) -> Any:
        """Apply `render` to `chunk_rays` rays at a time, over all images."""
        num_rays = inputs[0].shape[1]
        chunk_size = min(num_rays, max(1, self.chunk_rays // len(inputs[0]))) if self.chunk_rays else 0
        options: dict[str, Any] = {"chunk_size": chunk_size, "dim": 1, "shared": shared, "preserve_rng_state": False}
        if self.recompute == "none" and torch.is_grad_enabled() and chunk_size:
            slices = zip(*(tensor.split(chunk_size, 1) for tensor in inputs), strict=True)
            return [torch.cat(parts, 1) for parts in zip(*(render(*rows, *shared) for rows in slices), strict=True)]
        if self.recompute == "deferred":
            return deferred_map(render, inputs, parameters=parameters, **options)
        return chunked_map(render, inputs, **options)


def _image(values: Tensor, size: int) -> Tensor:
    """(B, size^2, C) to (B, C, size, size)."""
    if values.shape[1] != size * size:
        raise ShapeError("the pixels", expected=("B", size * size, "C"), actual=tuple(values.shape))
    return values.transpose(1, 2).reshape(len(values), -1, size, size)


def _check(config: GrafSystemConfig) -> None:
    camera, bound = config.camera, config.rendering.bound_radius
    if bound > 0 and not (camera.radius - bound < camera.far and camera.near < camera.radius + bound):
        raise ConfigError(
            f"rays are sampled from {camera.near:g} to {camera.far:g}, and all there is lies within {bound:g} of the"
            f" origin, {camera.radius:g} away from the camera",
            where="--system.camera.near, --system.camera.far, --system.camera.radius, --system.rendering.bound-radius",
            do="sample round the radius, such as from radius - bound-radius to radius + bound-radius",
        )
    ccsr = config.ccsr
    if not ccsr.enabled:
        return
    if config.rays.sampler == "patch":
        raise ConfigError(
            "super-resolution works on whole images, not on patches",
            where="--system.rays.sampler, --system.ccsr.enabled",
            do="take rays.sampler: whole (memory does not grow with the image), or ccsr.enabled: false",
        )
    if ccsr.loss == "adversarial" and not ccsr.field_gradient:
        raise ConfigError(
            "the discriminator sees the enlarged image alone, whose gradient is kept from the field: nothing trains it",
            where="--system.ccsr.loss, --system.ccsr.field-gradient",
            do="take ccsr.field_gradient: true, or ccsr.loss: consistency",
        )
    if ccsr.loss == "consistency" and config.camera.image_size % ccsr.scale:
        raise ConfigError(
            f"an image of {config.camera.image_size} pixels cannot be shrunk {ccsr.scale} times",
            where="--system.camera.image-size, --system.ccsr.scale",
            do=f"take a multiple of {ccsr.scale}",
        )
