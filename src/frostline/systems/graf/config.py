"""graf's configuration: camera, rays, field, rendering, super-resolution, discriminator.

The string under a field is its help. `ORIGINAL_KEYS` says which key of the published code each one takes the place of.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from frostline.config import Amount, Count, SystemConfig, Whole


@dataclass(frozen=True, kw_only=True)
class CameraConfig:
    """A pinhole camera on a sphere round the origin, looking at it."""

    image_size: Count = 32
    """Height and width of the rendered image in pixels, before super-resolution."""
    fov_degrees: Amount = 40.0
    """Angle that the image spans, across and down."""
    radius: Amount = 2.5
    """Distance of the camera from the origin."""
    near: Amount = 1.5
    """Distance along each ray where sampling begins."""
    far: Amount = 3.5
    """Distance along each ray where it ends."""


@dataclass(frozen=True, kw_only=True)
class RaysConfig:
    """Which rays a step renders."""

    sampler: Literal["whole", "patch"] = "whole"
    """Every pixel of the image, or a square patch at a random place and scale. Super-resolution needs whole images."""
    num_rays: Count = 1024
    """Rays of a patch: a perfect square."""
    min_scale: Amount = 0.25
    """Side of the smallest patch over the image's."""
    scale_anneal_steps: Whole = 2000
    """Steps over which the smallest patch shrinks from the whole image to `min_scale`; 0 for at once."""


@dataclass(frozen=True, kw_only=True)
class FieldConfig:
    """The radiance field: an MLP from a point and a direction to density and colour."""

    depth: Count = 8
    """Layers before the density."""
    width: Count = 256
    """Values in each."""
    skip_layer: Whole = 4
    """The layer behind which the point comes in again; 0 for nowhere."""
    point_frequencies: Whole = 10
    """Octaves of the positional encoding of points."""
    direction_frequencies: Whole = 4
    """Octaves of that of directions."""
    latent_size: Count = 256
    """Entries of the latent code."""
    num_classes: Count = 4
    """Different objects."""
    class_size: Count = 32
    """Entries of a class's embedding."""
    mapping_width: Count = 256
    """Hidden values of the net that makes every layer's scales and shifts from the latent code and the class."""
    conditioning: Literal["film", "adaln"] = "film"
    """Scale and shift each layer's values as they are, or after a layer norm."""


@dataclass(frozen=True, kw_only=True)
class RenderingConfig:
    """From densities and colours along a ray to a pixel."""

    num_samples: Count = 64
    """Stratified samples a ray."""
    num_importance: Whole = 0
    """Samples more, where the stratified ones found something."""
    coarse: Literal["shared", "own"] = "shared"
    """What finds these places: the field itself, which keeps nothing for it, or a second one that trains on its own
    picture."""
    background: Literal["black", "white"] = "white"
    """What is behind the object."""
    density_scale: Amount = 4.0
    """Of the density and of what goes into its softplus: how quickly the field becomes opaque."""
    bound_radius: Amount = 1.0
    """Nothing is farther than this from the origin; 0 for no bound."""
    density_noise: Amount = 1.0
    """Standard deviation of the noise on densities in the first step."""
    density_noise_steps: Whole = 5000
    """Steps over which it falls to 0; 0 for no noise."""
    chunk_rays: Whole = 32
    """Rays that are rendered at once; 0 renders all of them at once, and keeps what they save."""
    recompute: Literal["deferred", "checkpointed", "none"] = "deferred"
    """How a chunk comes back in backward. Both ways have the gradients of one call; with none, every chunk keeps what
    it saves, and chunks save no memory in training."""


@dataclass(frozen=True, kw_only=True)
class CcsrConfig:
    """Super-resolution of the rendered image that keeps to it: its average over each square is the rendered pixel."""

    enabled: bool = True
    """Whether there is any."""
    scale: Count = 2
    """Pixels across that each rendered one becomes."""
    num_views: Count = 8
    """Latent images, one for each sector of azimuth."""
    latent_size: Count = 64
    """Height and width of a latent image."""
    width: Count = 64
    """Channels of its convolutions."""
    loss: Literal["adversarial", "consistency"] = "adversarial"
    """The discriminator sees the result; or the published objective: bring a shrunken rendering back, while the
    discriminator sees the rendering."""
    consistency_decay: Amount = 1e-4
    """The published objective's weight is exp(-this x step)."""
    field_gradient: bool = True
    """Whether its loss also trains the field; adversarial needs it."""


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Judges images with their class, pose and place."""

    channels: Count = 128
    """Of the first convolution; they double at each halving of the image."""
    max_channels: Count = 512
    """Where doubling ends."""
    norm: Literal["spectral", "instance", "none"] = "spectral"
    """What holds its convolutions: their largest singular value, or each image's own mean and variance."""
    r1_weight: Amount = 10.0
    """Of the squared gradient at real images, summed over each image."""
    r1_every: Count = 16
    """Steps between two such penalties, which then count this often."""
    label_head: Literal["none", "mce"] = "none"
    """Whether it also names class and azimuth sector, trained by the sum of their cross-entropies."""
    label_weight: Amount = 1.0
    """Of that loss, for both players."""
    azimuth_sectors: Count = 8
    """How many of them it tells apart."""


@dataclass(frozen=True, kw_only=True)
class AverageConfig:
    """The averaged generator that samples and metrics use."""

    decay: Amount = 0.999
    """Share of the average that stays at each step, once there were many."""


@dataclass(frozen=True, kw_only=True)
class GrafSystemConfig(SystemConfig):
    """A conditional radiance-field GAN with a super-resolution head."""

    camera: CameraConfig = dataclasses.field(default_factory=CameraConfig)
    rays: RaysConfig = dataclasses.field(default_factory=RaysConfig)
    field: FieldConfig = dataclasses.field(default_factory=FieldConfig)
    rendering: RenderingConfig = dataclasses.field(default_factory=RenderingConfig)
    ccsr: CcsrConfig = dataclasses.field(default_factory=CcsrConfig)
    discriminator: DiscriminatorConfig = dataclasses.field(default_factory=DiscriminatorConfig)
    average: AverageConfig = dataclasses.field(default_factory=AverageConfig)


ORIGINAL_KEYS = {
    "data.imsize": "camera.image_size",
    "data.fov": "camera.fov_degrees",
    "data.radius": "camera.radius",
    "data.near": "camera.near",
    "data.far": "camera.far",
    "data.white_bkgd": "rendering.background",
    "ray_sampler.N_samples": "rays.num_rays",
    "ray_sampler.min_scale": "rays.min_scale",
    "ray_sampler.scale_anneal": "rays.scale_anneal_steps",
    "nerf.netdepth": "field.depth",
    "nerf.netwidth": "field.width",
    "nerf.multires": "field.point_frequencies",
    "nerf.multires_views": "field.direction_frequencies",
    "nerf.N_samples": "rendering.num_samples",
    "nerf.N_importance": "rendering.num_importance",
    "nerf.raw_noise_std": "rendering.density_noise",
    "nerf.decrease_noise": "rendering.density_noise_steps",
    "z_dist.dim": "field.latent_size",
    "training.chunk": "rendering.chunk_rays",
    "training.reg_param": "discriminator.r1_weight",
    "training.model_average_beta": "average.decay",
    "discriminator.ndf": "discriminator.channels",
}
"""Keys of the published code whose place is taken by a key of the system's own."""
