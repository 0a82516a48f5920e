"""linet's configuration: the network, and how often training takes streams away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from frostline.config import Amount, Count, SystemConfig, Whole


@dataclass(frozen=True, kw_only=True)
class LinetSystemConfig(SystemConfig):
    """A multi-stream ResNet with modality dropout."""

    depth: Literal[18, 34, 50, 101, 152] = 18
    """Of the ResNet that each stream is."""
    stream_channels: tuple[Count, ...] = (3, 1)
    """Channels of each stream's images: colour and depth."""
    num_classes: Count = 19
    """Classes of the classifier behind the integrated pathway."""
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
    recompute: Literal["none", "activations", "outputs", "blocks"] = "outputs"
    """What each block makes again in backward: nothing, what follows a normalisation inside it, its output too, or
    all but its output, which costs its convolutions once more. Gradients and statistics stay the same."""
    stem_slices: Whole = 4
    """Go back through the stem in so many slices of its channels, keeping only the images; 0 keeps what it saves."""
