"""semcom's configuration: a codec and a channel in the middle of a frozen Florence-2."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from frostline.config import Amount, Count, DataConfig, MemoryConfig, RunConfig, SystemConfig, TrainingConfig


@dataclass(frozen=True, kw_only=True)
class SemcomDataConfig(DataConfig):
    """Pictures and what is to be said of them."""

    kind: Literal["scenes", "coco"] = "scenes"
    """Procedural scenes, or pictures with captions in COCO's layout."""
    task: Literal["caption", "detection", "both"] = "caption"
    """What the receiver is asked; coco has captions only."""
    num_scenes: Count = 8192
    """Different training scenes."""
    num_test: Count = 1000
    """Pictures to evaluate on."""
    images: str = ""
    """COCO: the folder of pictures."""
    captions: str = ""
    """COCO: the annotation file, such as captions_train2017.json."""
    test_images: str = ""
    """COCO: the folder of test pictures; `images` if empty."""
    test_captions: str = ""
    """COCO: the annotations of the test pictures; if empty, training pictures are tested."""


@dataclass(frozen=True, kw_only=True)
class SemcomSystemConfig(SystemConfig):
    """The split, the codec and the channel."""

    model: str = "nano"
    """nano, a Florence-2 on the hub (florence-community/Florence-2-base) or a local directory."""
    mode: Literal["vision_tower", "image_proj_norm"] = "vision_tower"
    """Where the frozen model is cut: behind its vision tower or behind its projector."""
    codec: Literal["adaptive", "linear", "none"] = "adaptive"
    """SNR-adaptive, linear, or none: raw features on the channel, nothing to train, only to monitor."""
    symbols_per_token: Count = 4
    """Complex channel uses for each visual token: the bandwidth."""
    hidden_dim: Count = 256
    """Width of the adaptive codec."""
    channel: Literal["noiseless", "awgn", "rayleigh"] = "awgn"
    """Rayleigh is block fading: one gain a picture, known to the receiver."""
    snr_min_db: float = -6.0
    """Lowest Es/N0 in training, drawn uniformly for each picture."""
    snr_max_db: float = 15.0
    """Highest Es/N0 in training."""


@dataclass(frozen=True, kw_only=True)
class SemcomTrainingConfig(TrainingConfig):
    """Defaults that suit a codec of this size."""

    num_steps: Count = 1500
    """Optimizer updates in all."""
    learning_rate: Amount = 4e-3
    """Peak learning rate of AdamW."""


@dataclass(frozen=True, kw_only=True)
class SemcomConfig(RunConfig):
    """Everything a semcom run needs."""

    SYSTEM: ClassVar[str] = "semcom"

    data: SemcomDataConfig = field(default_factory=SemcomDataConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    training: SemcomTrainingConfig = field(default_factory=SemcomTrainingConfig)
    system: SemcomSystemConfig = field(default_factory=SemcomSystemConfig)


CONFIG = SemcomConfig
