"""Where real images come from: each with its class and the pose of its camera."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from frostline.errors import ConfigError, DataError
from frostline.scenes import SOLIDS, Split, render_solids
from frostline.systems.graf.config import GrafDataConfig

NUM_CLASSES = {"solids": len(SOLIDS), "nerf": 1}
"""Where the data set is not looked at."""
_BLOCK = 256
_COIL_SIZE, _COIL_VIEWS = 32, 72

Progress = Callable[[int, int], None]


class Source(Protocol):
    """Images by number.

    Attributes:
        names: Of the classes.
        classes: Of each image, int64 (N,).
        azimuth_degrees: Of each camera, float32 (N,).
        elevation_degrees: Of each camera, float32 (N,).
        seen: Whether these are images that the training sees.
    """

    names: tuple[str, ...]
    classes: Tensor
    azimuth_degrees: Tensor
    elevation_degrees: Tensor
    seen: bool

    def read(self, indices: Sequence[int]) -> Tensor:
        """Uint8 (B, 3, S, S)."""
        ...

    def prepare(self, progress: Progress) -> None:
        """Do what is done once."""
        ...


class ImageSource:
    """Images in memory.

    Args:
        images: Uint8 (N, 3, S, S).
        names: Of the classes.
        classes: Int64 (N,).
        azimuth_degrees: (N,).
        elevation_degrees: (N,).
        seen: Whether the training sees them.
    """

    def __init__(
        self,
        images: Tensor,
        names: Sequence[str],
        classes: Tensor,
        azimuth_degrees: Tensor,
        elevation_degrees: Tensor,
        *,
        seen: bool = True,
    ) -> None:
        self._images, self.names, self.classes, self.seen = images, tuple(names), classes, seen
        self.azimuth_degrees, self.elevation_degrees = azimuth_degrees.float(), elevation_degrees.float()

    def read(self, indices: Sequence[int]) -> Tensor:
        """Some of them."""
        return self._images[torch.as_tensor(indices, dtype=torch.long)]

    def prepare(self, progress: Progress) -> None:
        """They are there."""


class SolidsSource:
    """Solids, each drawn once and kept.

    Args:
        split: Which.
        num_images: How many.
        seed: Another seed is another data set.
        size: Height and width in pixels.
    """

    names: tuple[str, ...] = SOLIDS

    def __init__(self, *, split: Split, num_images: int, seed: int, size: int) -> None:
        self._split, self._seed, self.seen = split, seed, split == "train"
        self._images = torch.zeros(num_images, 3, size, size, dtype=torch.uint8)
        self._drawn = torch.zeros(num_images, dtype=torch.bool)
        labels = render_solids(range(num_images), split=split, seed=seed, size=1)
        self.classes = labels.classes
        self.azimuth_degrees, self.elevation_degrees = labels.azimuth_degrees, labels.elevation_degrees

    def read(self, indices: Sequence[int]) -> Tensor:
        """Pictures, drawn if they have not been yet."""
        rows = torch.as_tensor(indices, dtype=torch.long)
        new = rows[~self._drawn[rows]].unique()
        if len(new):
            size = self._images.shape[-1]
            self._images[new] = render_solids(new.tolist(), split=self._split, seed=self._seed, size=size).images
            self._drawn[new] = True
        return self._images[rows]

    def prepare(self, progress: Progress) -> None:
        """Draw all, so that loader processes need not."""
        num = len(self._drawn)
        for start in range(0, num, _BLOCK):
            self.read(range(start, min(start + _BLOCK, num)))
            progress(min(start + _BLOCK, num), num)


class FileSource:
    """Image files, read when they are asked for.

    Args:
        paths: Of the files.
        names: Of the classes.
        classes: Int64 (N,).
        azimuth_degrees: (N,).
        elevation_degrees: (N,).
        size: Height and width that images are brought to.
    """

    seen = True

    def __init__(
        self,
        paths: Sequence[Path],
        names: Sequence[str],
        classes: Tensor,
        azimuth_degrees: Tensor,
        elevation_degrees: Tensor,
        *,
        size: int,
    ) -> None:
        self._paths, self._size, self.names, self.classes = paths, size, tuple(names), classes
        self.azimuth_degrees, self.elevation_degrees = azimuth_degrees, elevation_degrees

    def read(self, indices: Sequence[int]) -> Tensor:
        """Some of them.

        Raises:
            DataError: A file is no image.
        """
        return torch.stack([self._load(self._paths[index]) for index in indices])

    def prepare(self, progress: Progress) -> None:
        """Files are read when they are needed."""

    def _load(self, path: Path) -> Tensor:
        try:
            with Image.open(path) as image:
                small = image.convert("RGB").resize((self._size, self._size), Image.Resampling.BOX)
        except (UnidentifiedImageError, OSError) as error:
            raise DataError(f"the file is no image: {error}", where=str(path)) from None
        return torch.from_numpy(np.array(small)).permute(2, 0, 1)


def open_source(data: GrafDataConfig, *, split: Split, seed: int, size: int) -> Source:
    """The images that a configuration names.

    Args:
        data: Which.
        split: ``train`` or ``test``. Folders and COIL-20 have no images to spare: both are all of them.
        seed: Of solids.
        size: Height and width that images are brought to.

    Raises:
        ConfigError: There is no path.
        DataError: What lies there is not in the layout.
    """
    if data.kind == "solids":
        num = data.num_test if split == "test" else data.num_images
        return SolidsSource(split=split, num_images=num, seed=seed, size=size)
    if not data.path:
        raise ConfigError(f"{data.kind} data has no place", do="give --data.path")
    path = Path(data.path).expanduser()
    if not path.exists():
        raise DataError("the data set does not exist", where=data.path, do="check --data.path")
    if data.kind == "folders":
        return open_folders(data, path, size=size)
    if data.kind == "coil20":
        return open_coil20(data, path, size=size)
    return open_views(data, path, split=split, size=size)


def open_folders(data: GrafDataConfig, root: Path, *, size: int) -> FileSource:
    """A folder an object, of files ``{elevation}_{azimuth}.jpg``; or one such folder.

    Args:
        data: Says which elevation each beginning of a name stands for.
        root: Of the folders.
        size: Height and width that images are brought to.

    Raises:
        ConfigError: Beginnings and elevations are not of one number.
        DataError: There is no image, or a name that says no pose.
    """
    if len(data.prefixes) != len(data.prefix_elevations_degrees):
        raise ConfigError(
            f"{len(data.prefixes)} prefixes have {len(data.prefix_elevations_degrees)} elevations",
            where="--data.prefixes, --data.prefix-elevations-degrees",
        )
    known = dict(zip(data.prefixes, data.prefix_elevations_degrees, strict=True))
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    found: list[tuple[Path, int, float, float]] = []
    for number, folder in enumerate(folders or [root]):
        for path in sorted(folder.glob("*_*")):
            if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
                found.append((path, number, *_pose_of(path, known)))
    if not found:
        raise DataError("there is no image", where=str(root), do="expected FOLDER/{elevation}_{azimuth}.jpg an object")
    paths, classes, azimuths, elevations = zip(*found, strict=True)
    return FileSource(
        paths,
        [folder.name for folder in folders or [root]],
        torch.tensor(classes),
        torch.tensor(azimuths),
        torch.tensor(elevations),
        size=size,
    )


def write_folders(source: Source, root: Path, data: GrafDataConfig) -> None:
    """Write images as `open_folders` reads them; of two with one name the later stays.

    Args:
        source: Of images whose elevations are among the configured ones.
        root: Where the folders go.
        data: Says which beginning of a name each elevation has.

    Raises:
        DataError: An elevation has no name.
    """
    prefixes = {round(e, 2): p for p, e in zip(data.prefixes, data.prefix_elevations_degrees, strict=True)}
    for row in range(len(source.classes)):
        elevation = round(float(source.elevation_degrees[row]), 2)
        if elevation not in prefixes:
            raise DataError(f"no file name begins with an elevation of {elevation:g} degrees", where=str(root))
        folder = root / source.names[int(source.classes[row])]
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(source.read([row])[0].permute(1, 2, 0).numpy())
        image.save(folder / f"{prefixes[elevation]:g}_{int(source.azimuth_degrees[row]):04d}.jpg", quality=95)


def open_coil20(data: GrafDataConfig, path: Path, *, size: int) -> ImageSource:
    """Photographs of objects on a turntable, 72 views each, as the .mat file of 32 x 32 pixels has them.

    Args:
        data: Says which objects, and at which elevation.
        path: The file: ``X`` (1440, 1024), columns first, from 0 to 1 or to 255; ``Y`` objects from 1 on.
        size: Height and width that images are brought to.

    Raises:
        ConfigError: No object was named.
        DataError: It is another file.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        file = loadmat(str(path))
        pixels, numbers = np.asarray(file["X"], dtype=np.float32), np.asarray(file["Y"]).ravel()
        pictures = pixels.reshape(-1, _COIL_SIZE, _COIL_SIZE).transpose(0, 2, 1)
    except (ValueError, KeyError, TypeError, NotImplementedError, OSError, MatReadError) as error:
        raise DataError(f"not COIL-20's file of 32 x 32 pixels: {error}", where=str(path)) from None
    rows = [np.flatnonzero(numbers == number) for number in data.objects]
    if not rows:
        raise ConfigError("no object was named", where="--data.objects", do="give some of 1 to 20")
    if any(len(found) != _COIL_VIEWS for found in rows):
        raise DataError(
            f"an object of {data.objects} has other than {_COIL_VIEWS} views",
            where=str(path),
            do="check --data.objects",
        )
    grey = torch.from_numpy(pictures[np.concatenate(rows)].copy())[:, None]
    images = (grey * (255 if grey.max() <= 1 else 1)).round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)
    views = torch.arange(_COIL_VIEWS).repeat(len(rows))
    return ImageSource(
        _resized(images, size),
        [f"object {number}" for number in data.objects],
        torch.arange(len(rows)).repeat_interleave(_COIL_VIEWS),
        views * (360 / _COIL_VIEWS),
        torch.full((len(views),), data.elevation_degrees),
    )


def open_views(data: GrafDataConfig, path: Path, *, split: Split, size: int) -> ImageSource:
    """Images of one scene and their cameras, which must look at the origin, upright, from one distance.

    Args:
        data: Says which of them are tested.
        path: An .npz file: ``images`` uint8 (N, H, W, 3), ``poses`` (N, 4, 4) from camera to world, x to the right, y
            up, backwards along z, as NeRF's synthetic scenes have them.
        split: ``train`` or ``test``.
        size: Height and width that images are brought to.

    Raises:
        DataError: It is another file, has other cameras, or none to test.
    """
    images, poses = _read_views(path)
    places, back = poses[:, :3, 3], poses[:, :3, 2]
    distances = places.norm(dim=1)
    upright = poses[:, 2, 0].abs().max() < 1e-3 and poses[:, 2, 1].min() > -1e-3
    looks = (places / distances[:, None] * back).sum(1).min() > 1 - 1e-4
    if not upright or not looks or distances.max() - distances.min() > 1e-2 * distances.mean():
        raise DataError(
            "the cameras do not all look at the origin, upright, from one distance",
            where=str(path),
            do="move the poses' origin to the middle of the object",
        )
    azimuth = torch.rad2deg(torch.atan2(places[:, 1], places[:, 0])) % 360
    elevation = torch.rad2deg(torch.asin((places[:, 2] / distances).clamp(-1, 1)))
    tested = torch.arange(len(images)) % data.test_every == data.test_every - 1
    if tested.all() or not tested.any():
        raise DataError(
            f"one in {data.test_every} of {len(images)} images is tested: that leaves none to "
            + ("train on" if tested.all() else "test"),
            where=str(path),
            do="check --data.test-every",
        )
    rows = (tested if split == "test" else ~tested).nonzero()[:, 0]
    return ImageSource(
        _resized(images[rows].permute(0, 3, 1, 2), size),
        [path.stem],
        torch.zeros(len(rows), dtype=torch.long),
        azimuth[rows],
        elevation[rows],
        seen=split == "train",
    )


def _read_views(path: Path) -> tuple[Tensor, Tensor]:
    """Images uint8 (N, H, W, 3) and poses float32 (N, 4, 4)."""
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            images, poses = torch.from_numpy(file["images"]), torch.from_numpy(file["poses"]).float()
    except (ValueError, KeyError, TypeError, IndexError, OSError, EOFError, BadZipFile) as error:
        raise DataError(f"no file of images and poses: {error}", where=str(path)) from None
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[-1] != 3:
        raise DataError(
            f"its images are {str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}",
            where=str(path),
            do="store them as uint8 (N, H, W, 3), transparent ones on the background's colour",
        )
    if poses.dim() != 3 or len(poses) != len(images) or poses.shape[1] < 3 or poses.shape[2] != 4:
        raise DataError(
            f"its poses are {tuple(poses.shape)}, for {len(images)} images", where=str(path), do="store (N, 4, 4)"
        )
    return images, poses


def _pose_of(path: Path, known: dict[float, float]) -> tuple[float, float]:
    """Azimuth and elevation in degrees, from a file's name."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)_(\d+)", path.stem)
    if match is None or float(match[1]) not in known:
        prefixes = ", ".join(f"{prefix:g}" for prefix in known)
        raise DataError(
            "the name says no pose", where=str(path), do=f"expected ELEVATION_AZIMUTH, ELEVATION one of {prefixes}"
        )
    return float(match[2]) % 360, known[float(match[1])]


def _resized(images: Tensor, size: int) -> Tensor:
    if images.shape[-2:] == (size, size):
        return images.contiguous()
    small = size < images.shape[-1]
    resized = F.interpolate(images.float(), size=(size, size), mode="area" if small else "bilinear")
    return resized.round().clamp(0, 255).to(torch.uint8)
