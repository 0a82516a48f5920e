"""graf's configuration: data, camera, rays, field, rendering, super-resolution, discriminator, training, metrics."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

from frostline.config import Amount, Count, DataConfig, MemoryConfig, RunConfig, SystemConfig, TrainingConfig, Whole


@dataclass(frozen=True, kw_only=True)
class GrafDataConfig(DataConfig):
    """Pictures with their class and the pose of their camera."""

    kind: Literal["solids", "folders", "coil20", "nerf"] = "solids"
    """Solids that are drawn; a folder an object, of files {elevation}_{azimuth}.jpg; COIL-20's photographs as a .mat
    file of 32 x 32 pixels; images and poses of one scene as an .npz file, for reconstruction."""
    path: str = ""
    """The directory or file; not for solids."""
    num_images: Count = 2000
    """Solids: different training pictures."""
    num_test: Count = 500
    """Solids: pictures that the training does not see."""
    objects: tuple[Count, ...] = (1, 4, 13, 18)
    """COIL-20: which of the 20 objects; these four are round, so that their pictures keep the object's size."""
    elevation_degrees: float = 20.0
    """COIL-20: of the camera."""
    prefixes: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5)
    """Folders: what file names begin with."""
    prefix_elevations_degrees: tuple[float, ...] = (0.0, 11.54, 23.58, 36.87)
    """Folders: the camera's elevation for each of these."""
    test_every: Count = 10
    """NeRF: every so manieth image is tested, not trained on."""


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
    augmentation: Literal["none", "colour", "translation", "both"] = "none"
    """What is done at random to all that it sees, real or not; gradients go through it."""


@dataclass(frozen=True, kw_only=True)
class AverageConfig:
    """The averaged generator that samples and metrics use."""

    decay: Amount = 0.999
    """Share of the average that stays at each step, once there were many."""


@dataclass(frozen=True, kw_only=True)
class OptimizersConfig:
    """What moves the two players."""

    kind: Literal["adam", "rmsprop"] = "adam"
    """AdamW without a first moment (betas 0 and 0.99), or RMSprop."""
    discriminator_learning_rate: Amount = 1e-4
    """Peak learning rate of the discriminator; `training.learning_rate` is the generator's."""
    milestones: tuple[Count, ...] = ()
    """Steps behind which both rates are multiplied by `factor`, beside what the schedule does."""
    factor: Amount = 0.5
    """See there."""


@dataclass(frozen=True, kw_only=True)
class MetricsConfig:
    """How good the averaged generator is."""

    every: Whole = 2000
    """Steps between two looks; the first is before the first step; 0 for none. The best generator is kept."""
    num_images: Count = 500
    """Images that are generated, with classes and poses drawn from the data, and as many real ones at most."""
    features: str = "own"
    """The net whose features FID and KID compare: a small one that learns the data's classes and poses, or a
    TorchScript file that makes features of uint8 images, such as an Inception net's."""
    feature_steps: Count = 400
    """Updates that the own net gets."""
    select: Literal["kid", "fid"] = "kid"
    """What the best generator has the smallest of; in reconstruction it is the squared error."""


@dataclass(frozen=True, kw_only=True)
class SamplesConfig:
    """Pictures to look at, of the averaged generator."""

    every: Whole = 1000
    """Steps between two sheets of colour, depth and accumulation; 0 for none."""
    num_samples: Count = 64
    """Stratified samples a ray, in the middle of their cells."""
    num_views: Count = 8
    """Azimuths on a sheet."""
    elevation_degrees: float = 25.0
    """Of all cameras."""
    num_frames: Count = 48
    """Of a turntable."""
    frames_per_second: Count = 16
    """Of a turntable."""
    format: Literal["gif", "mp4"] = "gif"
    """Of a turntable."""


@dataclass(frozen=True, kw_only=True)
class GrafSystemConfig(SystemConfig):
    """A conditional radiance-field GAN with a super-resolution head."""

    objective: Literal["adversarial", "reconstruction"] = "adversarial"
    """Two players; or the field of one scene alone, from images whose pose is known."""
    camera: CameraConfig = dataclasses.field(default_factory=CameraConfig)
    rays: RaysConfig = dataclasses.field(default_factory=RaysConfig)
    field: FieldConfig = dataclasses.field(default_factory=FieldConfig)
    rendering: RenderingConfig = dataclasses.field(default_factory=RenderingConfig)
    ccsr: CcsrConfig = dataclasses.field(default_factory=CcsrConfig)
    discriminator: DiscriminatorConfig = dataclasses.field(default_factory=DiscriminatorConfig)
    average: AverageConfig = dataclasses.field(default_factory=AverageConfig)
    optimizers: OptimizersConfig = dataclasses.field(default_factory=OptimizersConfig)
    metrics: MetricsConfig = dataclasses.field(default_factory=MetricsConfig)
    samples: SamplesConfig = dataclasses.field(default_factory=SamplesConfig)


@dataclass(frozen=True, kw_only=True)
class GrafTrainingConfig(TrainingConfig):
    """Defaults that suit two players."""

    num_steps: Count = 20000
    """Updates of each player."""
    batch_size: Count = 8
    """Images an update sees, over all processes and micro-batches."""
    learning_rate: Amount = 5e-4
    """Peak learning rate of the generator."""
    weight_decay: Amount = 0.0
    """Decoupled weight decay of both players."""
    warmup_steps: Whole = 0
    """Updates over which the learning rates rise linearly."""
    schedule: Literal["constant", "cosine"] = "constant"
    """How the learning rates go on after the warm-up; cosine ends at 2 % of the peak."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Of the field's MLP alone; all else keeps float32, the discriminator and its penalty too."""


@dataclass(frozen=True, kw_only=True)
class GrafConfig(RunConfig):
    """Everything a graf run needs."""

    SYSTEM: ClassVar[str] = "graf"

    data: GrafDataConfig = dataclasses.field(default_factory=GrafDataConfig)
    memory: MemoryConfig = dataclasses.field(default_factory=MemoryConfig)
    training: GrafTrainingConfig = dataclasses.field(default_factory=GrafTrainingConfig)
    system: GrafSystemConfig = dataclasses.field(default_factory=GrafSystemConfig)


CONFIG = GrafConfig
