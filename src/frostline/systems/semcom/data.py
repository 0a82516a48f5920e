"""What the codec is trained on: scenes, or pictures with captions in COCO's layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from frostline.errors import ConfigError, DataError
from frostline.ops import FeatureCache
from frostline.scenes import SHAPES, Scenes, Split, boxes, captions, describe, render_flat
from frostline.systems.semcom.backbone import TASKS, Backbone
from frostline.systems.semcom.config import SemcomDataConfig
from frostline.systems.semcom.receiver import IGNORED
from frostline.training import Sample


@dataclass(frozen=True)
class Batch:
    """B pictures, what is asked and answered about them, and the channel they will meet.

    Attributes:
        pixels: Normalised pictures (B, 3, S, S); None where features are cached.
        features: Cached features (B, N, D); None where they are to be computed.
        labels: Token ids of the answers (B, T), padded with -100.
        snr_db: Es/N0 of each sample, (B,).
        tasks: Florence-2's task token of each sample.
        answers: The answers in words.
        noise_seeds: Seed of each sample's channel.
        pictures: Number of each sample's picture in its source.
    """

    pixels: Tensor | None
    features: Tensor | None
    labels: Tensor
    snr_db: Tensor
    tasks: tuple[str, ...]
    answers: tuple[str, ...]
    noise_seeds: tuple[int, ...]
    pictures: tuple[int, ...]

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """The batch on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, called by torch's loader."""
        return self._map(Tensor.pin_memory)

    @property
    def num_target_tokens(self) -> int:
        """Tokens the loss counts."""
        return int((self.labels != IGNORED).sum())

    def _map(self, move: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            pixels=None if self.pixels is None else move(self.pixels),
            features=None if self.features is None else move(self.features),
            labels=move(self.labels),
            snr_db=move(self.snr_db),
        )


class Source(Protocol):
    """Pictures and answers by number. Several answers may belong to one picture."""

    num_samples: int
    num_pictures: int
    identity: str
    """Changes whenever the pictures do."""

    def picture_of(self, sample: int) -> int:
        """The picture of a sample."""
        ...

    def pixels(self, pictures: Sequence[int]) -> Tensor:
        """Normalised pictures (B, 3, S, S)."""
        ...

    def question(self, sample: int) -> tuple[str, str]:
        """A sample's task token and its answer in words."""
        ...


class SceneSource:
    """Procedural scenes of one split, each asked for its caption, its objects, or both in turn.

    Args:
        backbone: Says how large pictures are, how they are normalised and which location tokens exist.
        split: Which scenes.
        num_scenes: How many.
        task: ``caption``, ``detection`` or ``both``.
        seed: Another seed is another data set.
    """

    def __init__(self, backbone: Backbone, *, split: Split, num_scenes: int, task: str, seed: int) -> None:
        if num_scenes < 1:
            raise ConfigError(f"{num_scenes} scenes are no data set", where="--data.num-scenes", do="ask for 1 or more")
        self._tasks = tuple(TASKS) if task == "both" else (task,)
        self.num_pictures, self.num_samples = num_scenes, num_scenes * len(self._tasks)
        self._split, self._seed, self._size = split, seed, backbone.image_size
        self.identity = f"scenes {split} {seed} {num_scenes} {self._size}"
        processor = backbone.require_processor()
        self._mean, self._std = _statistics(processor)
        self._locations = location_tokens(processor.tokenizer)

    def picture_of(self, sample: int) -> int:
        """The picture of a sample."""
        return sample % self.num_pictures

    def pixels(self, pictures: Sequence[int]) -> Tensor:
        """Normalised pictures (B, 3, S, S)."""
        return (render_flat(self._describe(pictures), self._size) - self._mean) / self._std

    def question(self, sample: int) -> tuple[str, str]:
        """A sample's task token and its answer in words."""
        scenes = self._describe([self.picture_of(sample)])
        task = self._tasks[sample // self.num_pictures]
        answer = captions(scenes) if task == "caption" else detections(scenes, self._locations)
        return TASKS[task], answer[0]

    def _describe(self, pictures: Sequence[int]) -> Scenes:
        return describe(pictures, split=self._split, seed=self._seed)


class CocoSource:
    """Pictures and captions in COCO's layout: ``images`` with ids and file names, ``annotations`` with captions.

    Args:
        backbone: Says how pictures are resized and normalised.
        images: The folder of pictures.
        captions: The annotation file.

    Raises:
        DataError: A file is missing or not in this layout, or nothing is left of the set.
    """

    def __init__(self, backbone: Backbone, *, images: str, captions: str) -> None:
        if not images or not captions:
            raise ConfigError("coco data needs pictures and captions", do="give --data.images DIR --data.captions FILE")
        folder, file = Path(images).expanduser(), Path(captions).expanduser()
        if not folder.is_dir():
            raise DataError("the folder of pictures does not exist", where=images, do="check --data.images")
        self._files, self._captions = _read_coco(file, folder)
        self.num_pictures, self.num_samples = len(self._files), len(self._captions)
        self.identity = "\n".join(f"{file.name} {file.stat().st_size}" for file in self._files)
        self._image_processor = backbone.require_processor().image_processor

    def picture_of(self, sample: int) -> int:
        """The picture of a sample."""
        return self._captions[sample][0]

    def pixels(self, pictures: Sequence[int]) -> Tensor:
        """Normalised pictures (B, 3, S, S).

        Raises:
            DataError: A picture cannot be read.
        """
        opened = [_open(self._files[picture]) for picture in pictures]
        pixels: Tensor = self._image_processor(opened, return_tensors="pt")["pixel_values"]
        return pixels

    def question(self, sample: int) -> tuple[str, str]:
        """A sample's task token and its answer in words."""
        return TASKS["caption"], self._captions[sample][1]


class SemcomDataset:
    """Examples by sample: pictures or their cached features, question, answer, SNR and channel seed.

    Everything random about an example comes from (seed, epoch, index), so it does not matter which process makes it.

    Args:
        source: Pictures and answers.
        snr_range_db: Bounds of the uniform SNR.
        seed: Of SNR and channel.
        cache: Features by picture; every row must have been filled.
    """

    def __init__(
        self,
        source: Source,
        *,
        snr_range_db: tuple[float, float],
        seed: tuple[int, ...],
        cache: FeatureCache | None = None,
    ) -> None:
        self.source, self.cache = source, cache
        self._snr_range_db, self._seed = snr_range_db, seed

    def __len__(self) -> int:
        return self.source.num_samples

    def __getitems__(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        """Examples for a list of samples, made together because pictures are drawn faster that way."""
        pictures = [self.source.picture_of(sample.index) for sample in samples]
        if self.cache is None:
            tensors, key = self.source.pixels(pictures), "pixels"
        else:
            tensors, key = self.cache.fetch(torch.tensor(pictures), _refuse), "features"
        return [
            {key: tensor, **self._words_and_channel(sample)} for sample, tensor in zip(samples, tensors, strict=True)
        ]

    def _words_and_channel(self, sample: Sample) -> dict[str, Any]:
        task, answer = self.source.question(sample.index)
        rng = np.random.default_rng([*self._seed, sample.epoch, sample.index])
        return {
            "task": task,
            "answer": answer,
            "snr_db": float(rng.uniform(*self._snr_range_db)),
            "noise_seed": int(rng.integers(2**63)),
            "picture": self.source.picture_of(sample.index),
        }


@dataclass(frozen=True)
class Collate:
    """Joins examples to a batch; answers become token ids here.

    Attributes:
        tokenizer: The model's.
        max_tokens: The longest answer its decoder has positions for.
    """

    tokenizer: Any
    max_tokens: int

    def __call__(self, examples: Sequence[dict[str, Any]]) -> Batch:
        """Stack pictures, tokenise answers and pad them with -100."""
        answers = [example["answer"] for example in examples]
        rows = [torch.tensor(ids) for ids in self.tokenizer(answers).input_ids]
        for row, answer in zip(rows, answers, strict=True):
            if len(row) > self.max_tokens:
                raise DataError(
                    f"an answer has {len(row)} tokens, the model has room for {self.max_tokens}",
                    where=repr(answer[:60]),
                    do="shorten the caption, or leave it out",
                )
        stacked = {
            key: torch.stack([example[key] for example in examples]) if key in examples[0] else None
            for key in ("pixels", "features")
        }
        return Batch(
            pixels=stacked["pixels"],
            features=stacked["features"],
            labels=pad_sequence(rows, batch_first=True, padding_value=IGNORED),
            snr_db=torch.tensor([example["snr_db"] for example in examples]),
            tasks=tuple(example["task"] for example in examples),
            answers=tuple(answers),
            noise_seeds=tuple(example["noise_seed"] for example in examples),
            pictures=tuple(example["picture"] for example in examples),
        )


def open_source(data: SemcomDataConfig, backbone: Backbone, *, split: Split, seed: int) -> Source:
    """The pictures a configuration names; where it names no test pictures, the training pictures are tested."""
    if data.kind == "scenes":
        num_scenes = data.num_test if split == "test" else data.num_scenes
        return SceneSource(backbone, split=split, num_scenes=num_scenes, task=data.task, seed=seed)
    if data.task != "caption":
        raise ConfigError(f"coco data has no {data.task} answers", where="--data.task", do="use --data.task caption")
    if split == "test" and data.test_captions:
        return CocoSource(backbone, images=data.test_images or data.images, captions=data.test_captions)
    return CocoSource(backbone, images=data.images, captions=data.captions)


def detections(scenes: Scenes, locations: Sequence[str]) -> list[str]:
    """Florence-2's detection text of each scene, objects in reading order: ``circle<loc_109><loc_78>...ring<...``.

    Args:
        scenes: N scenes.
        locations: The tokenizer's location tokens, in order; they divide each side of the picture evenly.
    """
    bins = (boxes(scenes) * len(locations)).long().clamp(0, len(locations) - 1)
    return [
        "".join(
            SHAPES[shape] + "".join(locations[location] for location in box)
            for shape, box in zip(scenes.shape[row].tolist(), bins[row].tolist(), strict=True)
        )
        for row in range(len(scenes))
    ]


def location_tokens(tokenizer: Any) -> list[str]:
    """The tokenizer's ``<loc_i>`` tokens in order of i: 1000 of the released models, 32 of nano."""
    tokens = [token for token in tokenizer.get_vocab() if token.startswith("<loc_")]
    return sorted(tokens, key=lambda token: int(token[5:-1]))


def _refuse(positions: Tensor) -> Tensor:
    raise DataError(f"{len(positions)} pictures are not in the feature cache", do="fill the cache before training")


def _statistics(processor: Any) -> tuple[Tensor, Tensor]:
    image_processor = processor.image_processor
    mean, std = torch.tensor(image_processor.image_mean), torch.tensor(image_processor.image_std)
    return mean.view(3, 1, 1), std.view(3, 1, 1)


def _read_coco(file: Path, folder: Path) -> tuple[list[Path], list[tuple[int, str]]]:
    """Pictures that have captions, and (picture, caption) pairs."""
    layout = 'expected {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}'
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        names = {image["id"]: folder / image["file_name"] for image in document["images"]}
        pairs = [(note["image_id"], note["caption"].strip()) for note in document["annotations"]]
        unknown = next((image for image, _ in pairs if image not in names), None)
    except OSError as error:
        raise DataError(f"cannot read the captions: {error.strerror}", where=str(file)) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"the captions are not JSON: {error}", where=str(file)) from None
    except KeyError as error:
        raise DataError(f"the captions are not in COCO's layout: no key {error}", where=str(file), do=layout) from None
    except (AttributeError, TypeError):
        what = "the captions are not in COCO's layout: an entry is of another type"
        raise DataError(what, where=str(file), do=layout) from None
    if unknown is not None:
        raise DataError(f"a caption belongs to picture {unknown!r}, which is not listed", where=str(file), do=layout)
    used = list(dict.fromkeys(image for image, _ in pairs))
    if not used:
        raise DataError("the data set is empty: no captions", where=str(file))
    missing = next((names[image] for image in used if not names[image].is_file()), None)
    if missing is not None:
        raise DataError("a picture is missing", where=str(missing), do="check --data.images")
    position = {image: number for number, image in enumerate(used)}
    return [names[image] for image in used], [(position[image], caption) for image, caption in pairs]


def _open(file: Path) -> Image.Image:
    try:
        with Image.open(file) as picture:
            return picture.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"the picture cannot be read: {error}", where=str(file), do="replace or remove it") from None
