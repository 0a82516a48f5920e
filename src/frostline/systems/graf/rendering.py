"""From density and colour along rays to pixels.

Each sample stands for a cell of its ray: from the middle between it and the sample before to the middle between it and
the next. The cells fill the ray from near to far, so their weights and what passes all of them add up to 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from frostline.systems.graf.camera import Rays
from frostline.systems.graf.config import RenderingConfig
from frostline.systems.graf.field import Field
from frostline.systems.graf.noise import normal, uniform

_PLACES, _MORE_PLACES, _NOISE, _MORE_NOISE = range(4)  # streams of random numbers


@dataclass(frozen=True)
class Pixels:
    """What rays see.

    Attributes:
        colour: From -1 to 1, (B, N, 3).
        depth: Mean distance at which a ray ends, (B, N); far where it meets nothing.
        accumulation: How much of it the object stops, from 0 to 1, (B, N).
    """

    colour: Tensor
    depth: Tensor
    accumulation: Tensor


class Renderer:
    """Samples fields along rays and composites what they say.

    Args:
        config: How.
        near: Distance along each ray where sampling begins.
        far: Where it ends.
    """

    def __init__(self, config: RenderingConfig, near: float, far: float) -> None:
        self._config, self.near, self.far = config, near, far

    def noise_std(self, step: int) -> float:
        """Of the noise on densities after some steps."""
        steps = self._config.density_noise_steps
        return self._config.density_noise * max(0.0, 1 - step / steps) if steps else 0.0

    def stratified(self, seeds: Tensor, num: int, *, jitter: bool, dtype: torch.dtype) -> Tensor:
        """Increasing distances, one in each of `num` equal parts of the ray.

        Args:
            seeds: Of the rays, (B, N).
            num: Of each.
            jitter: Anywhere in its part; otherwise in the middle.
            dtype: Of the distances.

        Returns:
            (B, N, num).
        """
        inside: Tensor | float = uniform(seeds, num, stream=_PLACES, dtype=dtype) if jitter else 0.5
        parts = torch.arange(num, device=seeds.device, dtype=dtype) + inside
        return (self.near + (self.far - self.near) / num * parts).expand(*seeds.shape, num)

    @torch.no_grad()
    def important(self, distances: Tensor, weights: Tensor, seeds: Tensor, num: int, *, jitter: bool) -> Tensor:
        """Distances distributed as weights are over the cells; no gradient goes back through a place.

        Args:
            distances: Increasing, (B, N, S).
            weights: Of their cells, (B, N, S).
            seeds: Of the rays, (B, N).
            num: Of each.
            jitter: Random ones; otherwise evenly spread over the distribution.

        Returns:
            (B, N, num), of no order.

        Source: Mildenhall et al., NeRF (2020), section 5.2.
        """
        edges = self.edges(distances)
        mass = weights + 1e-5  # a ray that meets nothing is sampled evenly
        cumulative = F.pad((mass / mass.sum(-1, keepdim=True)).cumsum(-1), (1, 0))
        if jitter:
            share = uniform(seeds, num, stream=_MORE_PLACES, dtype=distances.dtype)
        else:
            middles = torch.arange(num, device=distances.device, dtype=distances.dtype) + 0.5
            share = (middles / num).expand(*seeds.shape, num).contiguous()
        cell = (torch.searchsorted(cumulative, share, right=True) - 1).clamp(0, weights.shape[-1] - 1)
        low, high = cumulative.gather(-1, cell), cumulative.gather(-1, cell + 1)
        first, last = edges.gather(-1, cell), edges.gather(-1, cell + 1)
        inside = (share - low) / (high - low).clamp_min(torch.finfo(share.dtype).tiny)
        return first + (last - first) * inside.clamp(0, 1)

    def edges(self, distances: Tensor) -> Tensor:
        """The borders of the samples' cells: (B, N, S) to (B, N, S + 1)."""
        middles = (distances[..., 1:] + distances[..., :-1]) / 2
        return F.pad(F.pad(middles, (1, 0), value=self.near), (0, 1), value=self.far)

    def weights(self, density: Tensor, distances: Tensor) -> Tensor:
        """The share of a ray that each cell stops: exact where density is constant in the cell.

        Args:
            density: 0 or more, (B, N, S).
            distances: Increasing, (B, N, S).

        Source: Max, Optical models for direct volume rendering (1995), equation 10.
        """
        thickness = density * self.edges(distances).diff(dim=-1)
        before = F.pad(thickness.cumsum(-1)[..., :-1], (1, 0))
        return torch.exp(-before) * -torch.expm1(-thickness)

    def look(
        self,
        field: Field,
        styles: Tensor,
        rays: Rays,
        distances: Tensor,
        seeds: Tensor,
        *,
        noise_std: float = 0.0,
        noise_stream: int = _NOISE,
    ) -> tuple[Pixels, Tensor]:
        """Ask a field at some distances; returns what the rays see and the samples' weights.

        Args:
            field: Which.
            styles: Its scales and shifts.
            rays: N an image.
            distances: Increasing, (B, N, S).
            seeds: Of the rays, (B, N), for the noise on densities.
            noise_std: Of that noise.
            noise_stream: Of its random numbers.
        """
        config = self._config
        points = torch.addcmul(rays.origins[:, :, None], rays.directions[:, :, None], distances[..., None])
        matter = field(points, rays.directions, styles)
        raw = config.density_scale * matter.density - 1
        if noise_std > 0:
            noise = normal(seeds, distances.shape[-1], stream=noise_stream, dtype=raw.dtype)
            raw = raw + noise_std * noise
        density = config.density_scale * F.softplus(raw)
        if config.bound_radius > 0:
            density = density * (points.norm(dim=-1) <= config.bound_radius)
        weights = self.weights(density, distances)
        accumulation = weights.sum(-1)
        colour = (weights[..., None] * torch.sigmoid(matter.colour)).sum(-2)
        if config.background == "white":
            colour = colour + (1 - accumulation[..., None])
        depth = (weights * distances).sum(-1) + (1 - accumulation) * self.far
        return Pixels(2 * colour - 1, depth, accumulation), weights

    def render(
        self,
        field: Field,
        styles: Tensor,
        rays: Rays,
        seeds: Tensor,
        *,
        coarse: tuple[Field, Tensor] | None = None,
        read_coarse: bool = False,
        noise_std: float = 0.0,
        jitter: bool = True,
        num_samples: int = 0,
    ) -> tuple[Pixels, Tensor | None]:
        """What rays see, and what the coarse field shows where somebody reads that.

        Args:
            field: Makes the picture.
            styles: Its scales and shifts.
            rays: N an image.
            seeds: Of the rays, (B, N).
            coarse: A field of its own, and its styles, that says where to look twice; left out, `field` does.
            read_coarse: A loss reads the coarse picture, which is how the coarse field learns. Otherwise it keeps
                nothing for backward.
            noise_std: Of the noise on densities.
            jitter: Sample at random places.
            num_samples: Stratified ones instead of the configured number.

        Returns:
            The pixels, and the coarse colours (B, N, 3) or None.
        """
        num = num_samples or self._config.num_samples
        distances = self.stratified(seeds, num, jitter=jitter, dtype=rays.origins.dtype)
        coarse_colour = None
        if self._config.num_importance:
            finder = coarse or (field, styles)
            with torch.set_grad_enabled(torch.is_grad_enabled() and read_coarse):
                seen, weights = self.look(*finder, rays, distances, seeds, noise_std=noise_std)
            coarse_colour = seen.colour if read_coarse else None
            more = self.important(distances, weights, seeds, self._config.num_importance, jitter=jitter)
            distances = torch.cat([distances, more], -1).sort(-1).values
        pixels, _ = self.look(field, styles, rays, distances, seeds, noise_std=noise_std, noise_stream=_MORE_NOISE)
        return pixels, coarse_colour
