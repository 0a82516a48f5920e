"""How near generated images are to real ones, and whether they show what was asked for."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from frostline.errors import ConfigError, import_extra
from frostline.systems.graf.camera import Poses
from frostline.systems.graf.config import GrafConfig
from frostline.systems.graf.features import FeatureNet, FileFeatures, train_feature_net
from frostline.systems.graf.generator import Generator
from frostline.systems.graf.sampling import sample
from frostline.systems.graf.sources import Source

_BLOCK = 100
_KID_SUBSETS = 50


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Of a generator.

    Attributes:
        kid: Kernel inception distance, of the configured features.
        fid: Frechet inception distance, of the same features.
        class_accuracy: Share of generated images in which another net finds the class that was asked for.
        azimuth_error_degrees: Median distance of the azimuth it finds from the one that was asked for.
        squared_error: Of reconstructed images from -1 to 1.
    """

    kid: float | None = None
    fid: float | None = None
    class_accuracy: float | None = None
    azimuth_error_degrees: float | None = None
    squared_error: float | None = None

    @property
    def psnr_db(self) -> float | None:
        """Of reconstructed images, in dB."""
        if self.squared_error is None:
            return None
        return float(10 * torch.log10(4 / torch.tensor(self.squared_error, dtype=torch.float64)))


class Scorer:
    """Scores generators on what the data ask for: rows, latent codes and nets are drawn once from the run's seed.

    Args:
        config: Of the run.
        train: Images that training sees: the features are learned from them, and compared with them.
        test: Images for the judge, which shares neither seed nor size with the features; where there are none that
            training does not see, these are the same.
    """

    def __init__(self, config: GrafConfig, train: Source, test: Source) -> None:
        self._config, self._train, self.test = config, train, test

    @cached_property
    def features(self) -> nn.Module:
        """The net whose features are compared."""
        metrics = self._config.system.metrics
        if metrics.features != "own":
            return FileFeatures(metrics.features)
        return train_feature_net(self._train, seed=self._seed(1), num_steps=metrics.feature_steps)

    @cached_property
    def judge(self) -> FeatureNet:
        """The net that says what images show."""
        return train_feature_net(
            self.test, seed=self._seed(2), num_steps=self._config.system.metrics.feature_steps, width=24
        )

    def score(self, generator: Generator) -> Scores:
        """Score a generator, by the configured objective.

        Raises:
            MissingExtraError: torchmetrics is not installed.
            ConfigError: There is one image only.
        """
        if self._config.system.objective == "reconstruction":
            return Scores(squared_error=self._squared_error(generator))
        generated, rows = self.generate(generator)
        kid, fid = self._distances(generated)
        poses = _poses(self._train, rows)
        accuracy, error = judged(self.judge, generated, self._train.classes[rows], poses)
        return Scores(kid=kid, fid=fid, class_accuracy=accuracy, azimuth_error_degrees=error)

    def generate(self, generator: Generator) -> tuple[Tensor, Tensor]:
        """Uint8 images with classes and poses drawn from the data's distribution, and the rows these are of."""
        config, numbers = self._config.system, torch.Generator().manual_seed(self._seed(3))
        rows = torch.randint(len(self._train.classes), (config.metrics.num_images,), generator=numbers)
        latents = torch.randn(len(rows), config.field.latent_size, generator=numbers)
        poses = _poses(self._train, rows)
        pictures = sample(generator, latents, self._train.classes[rows], poses, num_samples=config.samples.num_samples)
        return pictures.images, rows

    def judge_real(self) -> tuple[float, float]:
        """The judge's own accuracy and median error in degrees, on images that training sees."""
        rows = self._real_rows()
        images = torch.cat([self._train.read(block.tolist()) for block in rows.split(_BLOCK)])
        return judged(self.judge, images, self._train.classes[rows], _poses(self._train, rows))

    def _distances(self, generated: Tensor) -> tuple[float, float]:
        real = self._real_rows()
        size = min(len(generated), len(real))
        if size < 2:
            raise ConfigError(
                f"distances are between two or more images, and there are {len(generated)} generated and {len(real)}"
                " real ones",
                where="--system.metrics.num-images",
                do="give 2 or more, or --system.metrics.every 0",
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed(4))  # of KID's subsets
            kid, fid = _distances_of(self.features, subset_size=max(2, size // 2))
            for metric in (kid, fid):
                for block in generated.split(_BLOCK):
                    metric.update(block, real=False)
                for rows in real.split(_BLOCK):
                    metric.update(self._train.read(rows.tolist()), real=True)
            return float(kid.compute()[0]), float(fid.compute())

    def _squared_error(self, generator: Generator) -> float:
        config, test = self._config.system, self.test
        rows = torch.arange(len(test.classes))
        latents = torch.zeros(len(rows), config.field.latent_size)
        pictures = sample(generator, latents, test.classes, _poses(test, rows), num_samples=config.samples.num_samples)
        difference = (pictures.images.double() - test.read(rows.tolist()).double()) / 127.5
        return float(difference.square().mean())

    def _real_rows(self) -> Tensor:
        numbers = torch.Generator().manual_seed(self._seed(5))
        order = torch.randperm(len(self._train.classes), generator=numbers)
        return order[: self._config.system.metrics.num_images]

    def _seed(self, purpose: int) -> int:
        return (self._config.training.seed * 8 + purpose) % 2**63


@torch.no_grad()
def judged(net: FeatureNet, images: Tensor, classes: Tensor, poses: Poses) -> tuple[float, float]:
    """Share of images whose class a net names right, and its median azimuth error in degrees.

    Args:
        net: Trained on real images.
        images: Uint8 (N, 3, S, S).
        classes: That they should show, (N,).
        poses: From which they should be seen.
    """
    answers = [net.read(block) for block in images.split(_BLOCK)]
    logits, azimuth = (torch.cat(parts) for parts in zip(*answers, strict=True))
    difference = azimuth - poses.azimuth
    error = torch.atan2(difference.sin(), difference.cos()).abs()
    return float((logits.argmax(1) == classes).double().mean()), float(torch.rad2deg(error).median())


def _distances_of(features: nn.Module, *, subset_size: int) -> tuple[Any, Any]:
    """Both of torchmetrics' metrics; they are not imported by its package where torchvision is missing."""
    kid = import_extra("torchmetrics.image.kid", extra="graf")
    fid = import_extra("torchmetrics.image.fid", extra="graf")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `", UserWarning)  # that it keeps features: a few hundred
        return (
            kid.KernelInceptionDistance(features, subsets=_KID_SUBSETS, subset_size=subset_size),
            fid.FrechetInceptionDistance(features),
        )


def _poses(source: Source, rows: Tensor | Sequence[int]) -> Poses:
    return Poses.from_degrees(source.azimuth_degrees[rows], source.elevation_degrees[rows])
