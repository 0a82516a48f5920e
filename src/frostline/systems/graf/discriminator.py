"""The discriminator: is this an image of that class, from that pose?"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from frostline.errors import ConfigError, ShapeError
from frostline.systems.graf.camera import Poses
from frostline.systems.graf.config import DiscriminatorConfig
from frostline.systems.graf.rays import Patch


class Verdict(NamedTuple):
    """What the discriminator thinks.

    Attributes:
        score: Higher is more real, (B,).
        labels: Logits of class and azimuth sector, (B, K + sectors), where it names them.
    """

    score: Tensor
    labels: Tensor | None


class Discriminator(nn.Module):
    """Convolutions that halve the image down to 4 pixels, and a projection on class, pose and place.

    Nothing in it mixes the images of a batch: the gradient at an image is a function of that image alone.

    Args:
        config: Its sizes.
        image_size: Height and width of what it sees.
        num_classes: Different objects.

    Raises:
        ConfigError: An image of fewer than 4 pixels.

    Source: Schwarz et al., GRAF (2020), for the convolutions; Miyato and Koyama, cGANs with projection discriminator
    (2018).
    """

    def __init__(self, config: DiscriminatorConfig, image_size: int, num_classes: int) -> None:
        super().__init__()
        if image_size < 4:
            raise ConfigError(f"an image of {image_size} pixels is too small to judge", do="render 4 or more")
        self.config, self.image_size, self.num_classes = config, image_size, num_classes
        layers: list[nn.Module] = []
        channels, width, size = 3, min(config.channels, config.max_channels), image_size
        while size > 4:
            layers += self._halve(channels, width, first=not layers)
            channels, width, size = width, min(2 * width, config.max_channels), size // 2
        self.features = nn.Sequential(*layers, nn.Flatten())
        num_features = channels * size**2
        self.score = self._held(nn.Linear(num_features, 1))
        self.condition = self._held(nn.Linear(num_classes + 4 + 3, num_features))
        self.label_groups = (num_classes, config.azimuth_sectors)
        self.labels = nn.Linear(num_features, sum(self.label_groups)) if config.label_head == "mce" else None

    def forward(self, images: Tensor, classes: Tensor, poses: Poses, patch: Patch) -> Verdict:
        """Judge.

        Args:
            images: (B, 3, n, n).
            classes: Int64 (B,).
            poses: Of B cameras.
            patch: The part of the whole image that is seen.

        Raises:
            ShapeError: Images of another size.
        """
        expected = (len(classes), 3, self.image_size, self.image_size)
        if images.shape != expected:
            raise ShapeError("the images", expected=expected, actual=tuple(images.shape), where="Discriminator")
        features = self.features(images)
        one_hot = (classes[:, None] == torch.arange(self.num_classes, device=classes.device)).to(images.dtype)
        described = torch.cat([one_hot, poses.features().to(images.dtype), patch.geometry().to(images.dtype)], 1)
        projection = (self.condition(described) * features).sum(1) / features.shape[1] ** 0.5
        return Verdict(self.score(features)[:, 0] + projection, None if self.labels is None else self.labels(features))

    def _halve(self, inside: int, outside: int, *, first: bool) -> list[nn.Module]:
        layers: list[nn.Module] = [self._held(nn.Conv2d(inside, outside, 4, stride=2, padding=1))]
        if self.config.norm == "instance" and not first:  # the first one would lose the image's brightness
            layers.append(nn.InstanceNorm2d(outside, affine=True))
        return [*layers, nn.LeakyReLU(0.2, inplace=True)]

    def _held(self, layer: nn.Module) -> nn.Module:
        return spectral_norm(layer) if self.config.norm == "spectral" else layer
