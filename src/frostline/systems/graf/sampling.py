"""Images of a generator to look at and to count: without a graph, a few at a time, each gone to the host at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from frostline.systems.graf.camera import Poses
from frostline.systems.graf.generator import Draw, Generator, Rendering
from frostline.systems.graf.objective import shown
from frostline.systems.graf.rays import Patch

_AT_ONCE = 8


@dataclass(frozen=True)
class Pictures:
    """What a generator shows.

    Attributes:
        images: Uint8 (N, 3, S, S), super-resolution's where the discriminator sees that.
        depth: Uint8 (N, 1, n, n), near is bright.
        accumulation: Uint8 (N, 1, n, n).
    """

    images: Tensor
    depth: Tensor
    accumulation: Tensor


@torch.no_grad()
def sample(generator: Generator, latents: Tensor, classes: Tensor, poses: Poses, *, num_samples: int) -> Pictures:
    """Whole images at given poses; the same ones whenever it is asked again.

    Args:
        generator: Or its average.
        latents: (N, Z), on the host.
        classes: Int64 (N,), on the host.
        poses: Of N cameras, on the host.
        num_samples: Stratified samples a ray, in the middle of their cells.
    """
    parts = list(_renderings(generator, latents, classes, poses, num_samples))
    images, depth, accumulation = (torch.cat([part[at] for part in parts]) for at in range(3))
    return Pictures(images, depth, accumulation)


def _renderings(
    generator: Generator, latents: Tensor, classes: Tensor, poses: Poses, num_samples: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    weight, size = generator.field.density.weight, generator.camera.image_size
    for start in range(0, len(classes), _AT_ONCE):
        rows = slice(start, start + _AT_ONCE)
        some = Poses(poses.azimuth[rows].to(weight.device), poses.elevation[rows].to(weight.device))
        draw = Draw(
            latents[rows].to(weight.device, weight.dtype),
            classes[rows].to(weight.device),
            some,
            Patch.whole(size, len(some), weight.device),
            torch.zeros(len(some), dtype=torch.long, device=weight.device),
        )
        rendering: Rendering = generator(draw, jitter=False, num_samples=num_samples)
        near, far = generator.camera.near, generator.camera.far
        yield (
            _bytes((shown(generator, rendering.image, draw) + 1) / 2),
            _bytes((far - rendering.depth) / (far - near)),
            _bytes(rendering.accumulation),
        )


def _bytes(values: Tensor) -> Tensor:
    rounded: Tensor = (255 * values.float().clamp(0, 1)).round()
    return rounded.to("cpu", torch.uint8)


def sheet(images: Tensor, columns: int) -> Tensor:
    """Lay images (N, C, S, S) out in rows of so many: uint8 (H, W, 3)."""
    rows = images.expand(-1, 3, -1, -1).unflatten(0, (-1, columns))
    num_rows, _, _, height, width = rows.shape
    joined: Tensor = rows.permute(0, 3, 1, 4, 2).reshape(num_rows * height, columns * width, 3)
    return joined
