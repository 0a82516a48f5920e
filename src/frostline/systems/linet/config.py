"""linet's configuration: the data, the network, and how often training takes streams away."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from frostline.config import Amount, Count, DataConfig, MemoryConfig, RunConfig, SystemConfig, TrainingConfig, Whole


@dataclass(frozen=True, kw_only=True)
class LinetDataConfig(DataConfig):
    """Pictures of a colour and a depth camera, and what they show."""

    kind: Literal["scenes", "folders", "sunrgbd", "nyuv2"] = "scenes"
    """Procedural rooms; numbered files by split (rgb, depth, labels.txt); SUN RGB-D's or NYU v2's own layout."""
    directory: str = ""
    """Where the data set lies; not for scenes."""
    num_scenes: Count = 8192
    """Scenes: different training rooms."""
    num_test: Count = 1000
    """Scenes: rooms to evaluate on; of other data sets the first so many test samples."""
    shading: Amount = 0.0
    """Scenes: how much of the object's shape the colour camera sees, from 0 to 1."""
    image_size: Count = 32
    """Height and width that the network sees, in pixels; 224 is usual for photographs."""
    augmentation: Literal["none", "geometric"] = "geometric"
    """Train on random crops and mirror images, the same for all streams, or on the middle of each picture."""
    min_class_size: Count = 80
    """SUN RGB-D, NYU v2: leave out classes with fewer pictures."""


@dataclass(frozen=True, kw_only=True)
class LinetSystemConfig(SystemConfig):
    """A multi-stream ResNet with modality dropout."""

    depth: Literal[18, 34, 50, 101, 152] = 18
    """Of the ResNet that each stream is."""
    stream_channels: tuple[Count, ...] = (3, 1)
    """Channels of each stream's images: colour and depth."""
    num_classes: Whole = 0
    """Classes of the classifier behind the integrated pathway; 0 for those of the data set."""
    width_multiplier: Amount = 1.0
    """Of all channel counts."""
    dropout: Amount = 0.0
    """Probability of dropout before the classifier."""
    initialisation: Literal["kaiming", "published"] = "kaiming"
    """How the integrated pathway starts; the published way makes all its channels equal, so that it has rank 1."""
    fill: Literal["zero", "learned"] = "zero"
    """What a missing stream adds to the integrated pathway: nothing, or a vector that is trained."""
    modality_dropout: Literal["none", "one_of_n", "independent", "subsets", "fixed_count"] = "one_of_n"
    """What training takes away from a sample."""
    modality_dropout_rate: Amount = 0.2
    """The final rate."""
    modality_dropout_start: Whole = 0
    """The first epoch that is not at the initial rate."""
    modality_dropout_ramp: Whole = 20
    """Epochs over which the rate becomes the final one; 0 for at once."""
    modality_dropout_schedule: Literal["up", "down"] = "up"
    """Whether the initial rate is 0 or 1."""
    batch_statistics: Literal["process", "all"] = "process"
    """Whose samples a batch's statistics are of, where several processes train: each one's own, or all together."""
    recompute: Literal["none", "activations", "outputs", "blocks"] = "outputs"
    """What each block makes again in backward: nothing, what follows a normalisation inside it, its output too, or
    all but its output, which costs its convolutions once more. Gradients and statistics stay the same. With a
    `memory.budget` this and `stem_slices` are left aside: the cheapest choice that fits is taken."""
    stem_slices: Whole = 4
    """Go back through the stem in so many slices of its channels, keeping only the images; 0 keeps what it saves."""


@dataclass(frozen=True, kw_only=True)
class LinetTrainingConfig(TrainingConfig):
    """Defaults that suit a network trained from the start."""

    num_steps: Count = 2000
    """Optimizer updates in all."""
    learning_rate: Amount = 2e-3
    """Peak learning rate of AdamW."""
    weight_decay: Amount = 1e-2
    """Decoupled weight decay of AdamW; scales, shifts and biases are not decayed."""


@dataclass(frozen=True, kw_only=True)
class LinetConfig(RunConfig):
    """Everything a linet run needs."""

    SYSTEM: ClassVar[str] = "linet"

    data: LinetDataConfig = field(default_factory=LinetDataConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    training: LinetTrainingConfig = field(default_factory=LinetTrainingConfig)
    system: LinetSystemConfig = field(default_factory=LinetSystemConfig)


CONFIG = LinetConfig
