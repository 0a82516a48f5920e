"""Files to look at: a turntable of every class, and a sheet of fixed angles."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from frostline.errors import import_extra
from frostline.systems.graf.config import GrafConfig
from frostline.systems.graf.generator import Generator
from frostline.systems.graf.review import class_views, write_picture, write_sheet
from frostline.systems.graf.sampling import sheet

_LEAST_WIDTH = 768


def write_views(generator: Generator, config: GrafConfig, directory: Path) -> list[Path]:
    """A sheet of fixed azimuths with depth and accumulation, and turntables of colour and of depth.

    Args:
        generator: The averaged one.
        config: Says how many views and frames, from where, and the format.
        directory: Where they go.

    Raises:
        MissingExtraError: The package that writes mp4 is not installed.
    """
    samples, num_classes = config.system.samples, config.system.field.num_classes
    if samples.format == "mp4":
        import_extra("imageio_ffmpeg", extra="graf")  # now, not after the rendering
    path = directory / "views.png"
    write_sheet(class_views(generator, config, samples.num_views), samples.num_views, path)
    around = class_views(generator, config, samples.num_frames)
    paths = [path]
    for name, images in (("turntable", around.images), ("turntable-depth", around.depth)):
        frames = images.unflatten(0, (num_classes, -1)).transpose(0, 1)
        pictures = torch.stack([sheet(frame, num_classes) for frame in frames])
        paths.append(directory / f"{name}.{samples.format}")
        write_film(_large(pictures), paths[-1], frames_per_second=samples.frames_per_second)
    return paths


def write_film(frames: Tensor, path: Path, *, frames_per_second: int) -> None:
    """Write uint8 frames (T, H, W, 3) as a .gif that repeats, or as an .mp4.

    Raises:
        MissingExtraError: The package that writes mp4 is not installed.
    """
    if path.suffix == ".gif":
        first, *others = (Image.fromarray(frame.numpy()) for frame in frames)
        first.save(path, save_all=True, append_images=others, duration=1000 / frames_per_second, loop=0)
        return
    ffmpeg = import_extra("imageio_ffmpeg", extra="graf")
    height, width = frames.shape[1:3]
    writer = ffmpeg.write_frames(str(path), (width, height), fps=frames_per_second, macro_block_size=2)
    writer.send(None)
    for frame in frames:
        writer.send(frame.contiguous().numpy())
    writer.close()


def write_pictures(generator: Generator, config: GrafConfig, directory: Path) -> Path:
    """The sheet of fixed azimuths alone, colour only and large enough to look at."""
    samples = config.system.samples
    picture = sheet(class_views(generator, config, samples.num_views).images, samples.num_views)
    path = directory / "turntable.png"
    write_picture(_large(picture[None])[0], path)
    return path


def _large(pictures: Tensor) -> Tensor:
    """Small pictures (T, H, W, 3) with each pixel as a square, so that they can be seen."""
    times = max(1, _LEAST_WIDTH // pictures.shape[2])
    return pictures.repeat_interleave(times, 1).repeat_interleave(times, 2)
