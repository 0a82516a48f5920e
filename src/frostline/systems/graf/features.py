"""A small net that learns what images show and from where: its features for metrics, its answers for a judgement."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frostline.errors import ConfigError
from frostline.systems.graf.camera import Poses
from frostline.systems.graf.sources import Source

_SIZE, _BATCH, _LEARNING_RATE, _NOISE = 32, 32, 2e-3, 0.05


class FeatureNet(nn.Module):
    """Convolutions on images shrunken to 32 pixels; class and azimuth are read from its features.

    Args:
        num_classes: Different objects.
        num_features: Entries of a feature.
        width: Channels of the first convolution.
    """

    def __init__(self, num_classes: int, *, num_features: int = 64, width: int = 16) -> None:
        super().__init__()
        self.num_classes, self.num_features = num_classes, num_features
        channels = (3, width, 2 * width, 3 * width)
        layers: list[nn.Module] = []
        for inside, outside in pairwise(channels):
            layers += [nn.Conv2d(inside, outside, 3, stride=2, padding=1), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * (_SIZE // 8) ** 2, num_features))
        self.head = nn.Linear(num_features, num_classes + 2)

    def forward(self, images: Tensor) -> Tensor:
        """Features of uint8 images (N, 3, S, S), each as long as the root of their number, (N, F)."""
        directions: Tensor = F.normalize(self._features(_floats(images)), dim=1)
        return directions * math.sqrt(self.num_features)

    def read(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (N, K) and azimuth in radians (N,) of uint8 images."""
        return self._answers(_floats(images))

    def loss(self, images: Tensor, classes: Tensor, poses: Poses) -> Tensor:
        """Cross-entropy of the class plus the squared error of the azimuth's sine and cosine, of images -1 to 1."""
        answers = self.head(F.relu(self._features(images)))
        circle = torch.stack([poses.azimuth.sin(), poses.azimuth.cos()], 1)
        split = self.num_classes
        return F.cross_entropy(answers[:, :split], classes) + F.mse_loss(answers[:, split:], circle)

    def _features(self, images: Tensor) -> Tensor:
        features: Tensor = self.net(images)
        return features

    def _answers(self, images: Tensor) -> tuple[Tensor, Tensor]:
        answers = self.head(F.relu(self._features(images)))
        sine, cosine = answers[:, self.num_classes :].unbind(1)
        return answers[:, : self.num_classes], torch.atan2(sine, cosine)


def train_feature_net(source: Source, *, seed: int, num_steps: int, width: int = 16) -> FeatureNet:
    """Train one on real images, always the same from one seed; torch's own generators stay as they are.

    Args:
        source: Of the images.
        seed: Of initial values, order and noise.
        num_steps: Updates.
        width: Channels of the first convolution.
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        net = FeatureNet(len(source.names), width=width)
        optimizer = torch.optim.Adam(net.parameters(), lr=_LEARNING_RATE)
        for _ in range(num_steps):
            rows = torch.randint(len(source.classes), (_BATCH,))
            images = _floats(source.read(rows.tolist()))
            poses = Poses.from_degrees(source.azimuth_degrees[rows], source.elevation_degrees[rows])
            loss = net.loss(images + _NOISE * torch.randn_like(images), source.classes[rows], poses)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval().requires_grad_(False)


class FileFeatures(nn.Module):
    """The features that a TorchScript file makes of uint8 images, such as an Inception net's.

    Args:
        path: The file.

    Raises:
        ConfigError: It is no such file, or makes other than one vector an image.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript, which such nets are published in
                self.net = torch.jit.load(path, map_location="cpu").eval()
            features = self.net(torch.zeros(2, 3, 299, 299, dtype=torch.uint8))
        except (RuntimeError, ValueError, OSError) as error:
            text = str(error).partition("\n")[0]
            raise ConfigError(f"no TorchScript net of uint8 images: {text}", where=path) from None
        if not isinstance(features, Tensor) or features.dim() != 2:
            raise ConfigError("the net makes other than one vector an image", where=path)
        self.num_features = features.shape[1]

    def forward(self, images: Tensor) -> Tensor:
        """Features (N, F) of uint8 images, which it sees at 299 pixels."""
        large = F.interpolate(images.float(), size=(299, 299), mode="bilinear", antialias=True)
        features: Tensor = self.net(large.round().clamp(0, 255).to(torch.uint8))
        return features.float()


def _floats(images: Tensor) -> Tensor:
    """Uint8 images (N, 3, S, S) as 32 pixels from -1 to 1."""
    values = images.float() / 127.5 - 1
    if values.shape[-1] == _SIZE:
        return values
    return F.interpolate(values, size=(_SIZE, _SIZE), mode="area" if values.shape[-1] > _SIZE else "bilinear")
