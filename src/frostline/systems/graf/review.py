"""What a run keeps beside its checkpoint: sheets of samples, scores by step, and the best generator so far."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from frostline.config import dump_config
from frostline.errors import CheckpointError
from frostline.regions import trainable_state
from frostline.systems.graf.camera import Poses
from frostline.systems.graf.config import GrafConfig
from frostline.systems.graf.generator import Generator
from frostline.systems.graf.metrics import Scorer, Scores
from frostline.systems.graf.model import GrafModel
from frostline.systems.graf.sampling import Pictures, sample, sheet

TRAINABLES = "gan.safetensors"
BEST = "best"
"""Directory of the best generator, in its run's."""
_SCORES = "scores.jsonl"


class Reviewer:
    """Writes into a run's directory; a step that is repeated after a crash writes the same again.

    Args:
        config: Of the run.
        directory: Its own.
        scorer: Knows the data.
    """

    def __init__(self, config: GrafConfig, directory: Path, scorer: Scorer) -> None:
        self._config, self._directory, self._scorer = config, directory, scorer

    def review(self, model: GrafModel, step: int) -> None:
        """Do what is due behind so many steps; the last step has everything due."""
        system, last = self._config.system, step == self._config.training.num_steps
        if system.samples.every and (last or step % system.samples.every == 0):
            self.write_sheet(model.average, step)
        if system.metrics.every and (last or step % system.metrics.every == 0):
            self._keep_scores(model, step)

    def write_sheet(self, generator: Generator, step: int) -> Path:
        """Colour, depth and accumulation of every class from all round."""
        pictures = class_views(generator, self._config, self._config.system.samples.num_views)
        path = self._directory / "samples" / f"step-{step:06d}.png"
        write_sheet(pictures, self._config.system.samples.num_views, path)
        return path

    def _keep_scores(self, model: GrafModel, step: int) -> None:
        scores = self._scorer.score(model.average)
        before = [(made, old) for made, old in read_scores(self._directory) if made < step]
        lines = [json.dumps({"step": made, **asdict(old)}) + "\n" for made, old in [*before, (step, scores)]]
        self._directory.mkdir(parents=True, exist_ok=True)
        _replace(self._directory / _SCORES, "".join(lines).encode())
        if self._worth(scores) < min((self._worth(old) for _, old in before), default=float("inf")):
            best = self._directory / BEST
            best.mkdir(exist_ok=True)
            _replace(best / "config.yaml", dump_config(self._config).encode())
            state = {name: tensor.detach().cpu().contiguous() for name, tensor in trainable_state(model).items()}
            _replace(best / TRAINABLES, safetensors.torch.save(state, {"step": str(step)}))

    def _worth(self, scores: Scores) -> float:
        """Less is better."""
        system = self._config.system
        name = "squared_error" if system.objective == "reconstruction" else system.metrics.select
        return float(getattr(scores, name))


def read_scores(directory: Path) -> list[tuple[int, Scores]]:
    """The scores of a run, by step.

    Raises:
        CheckpointError: The file is damaged.
    """
    path = directory / _SCORES
    if not path.exists():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [(int(line.pop("step")), Scores(**line)) for line in lines]
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"the scores cannot be read: {error}", where=str(path), do="remove the file") from None


def class_views(generator: Generator, config: GrafConfig, num_views: int) -> Pictures:
    """Every class from so many azimuths, class by class; each class has one latent code, the same in every call."""
    field, samples = config.system.field, config.system.samples
    numbers = torch.Generator().manual_seed(config.training.seed)
    latents = torch.randn(field.num_classes, field.latent_size, generator=numbers)
    if config.system.objective == "reconstruction":
        latents.zero_()
    azimuths = torch.arange(num_views) * (360 / num_views)
    poses = Poses.from_degrees(
        azimuths.repeat(field.num_classes),
        torch.full((num_views * field.num_classes,), samples.elevation_degrees),
    )
    return sample(
        generator,
        latents.repeat_interleave(num_views, 0),
        torch.arange(field.num_classes).repeat_interleave(num_views),
        poses,
        num_samples=samples.num_samples,
    )


def write_sheet(pictures: Pictures, columns: int, path: Path) -> None:
    """One picture: the colours, and below them depth and accumulation at the same size."""
    size = pictures.images.shape[-1]
    parts = [pictures.images, *(_enlarged(part, size) for part in (pictures.depth, pictures.accumulation))]
    write_picture(torch.cat([sheet(part, columns) for part in parts]), path)


def write_picture(picture: Tensor, path: Path) -> None:
    """A uint8 picture (H, W, 3) as a file of its suffix's format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.numpy()).save(path)


def _enlarged(images: Tensor, size: int) -> Tensor:
    times = size // images.shape[-1]
    return images.repeat_interleave(times, -1).repeat_interleave(times, -2)


def _replace(path: Path, content: bytes) -> None:
    """Write a file beside its place, then move it there: whoever reads finds the old one or the new one whole."""
    beside = path.with_name(f"{path.name}.next")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
