"""The radiance field: what is at a point, seen from a direction."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frostline.errors import ConfigError
from frostline.systems.graf.config import FieldConfig
from frostline.training import Precision

_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class Matter(NamedTuple):
    """What a field says, before any nonlinearity, in the type of its points.

    Attributes:
        colour: (B, N, S, 3).
        density: (B, N, S).
    """

    colour: Tensor
    density: Tensor


class Field(nn.Module):
    """An MLP from points and directions to colour and density, every layer conditioned on latent code and class.

    A mapping net makes one scale and one shift for each value of each layer: h becomes h (1 + scale) + shift, of the
    values as they are (FiLM) or after a layer norm (AdaLN). The camera's pose reaches it through points and directions
    only: otherwise the object would change with the view.

    Args:
        config: Its sizes.
        precision: Autocast type of the MLP; encodings, scales and shifts are made outside it.

    Raises:
        ConfigError: A skip layer that is not there.

    Source: Schwarz et al., GRAF (2020); Perez et al., FiLM (2018), as Chan et al., pi-GAN (2021) condition a field.
    """

    def __init__(self, config: FieldConfig, precision: Precision = "32-true") -> None:
        super().__init__()
        if config.skip_layer >= config.depth:
            raise ConfigError(
                f"layer {config.skip_layer} of {config.depth} has none behind it",
                where="--system.field.skip-layer",
                do=f"give at most {config.depth - 1}, or 0 for no skip",
            )
        self.config, self.precision = config, precision
        width, half = config.width, max(1, config.width // 2)
        point_size, direction_size = 3 + 6 * config.point_frequencies, 3 + 6 * config.direction_frequencies
        self.classes = nn.Embedding(config.num_classes, config.class_size)
        self.widths = (*(width,) * config.depth, half)
        self.mapping = nn.Sequential(
            nn.Linear(config.latent_size + config.class_size, config.mapping_width),
            nn.LeakyReLU(0.2),
            nn.Linear(config.mapping_width, 2 * sum(self.widths)),
        )
        self.layers = nn.ModuleList(nn.Linear(width if i else point_size, width) for i in range(config.depth))
        self.skip = nn.Linear(point_size, width, bias=False) if config.skip_layer else None
        self.density = nn.Linear(width, 1)
        self.feature = nn.Linear(width, half)
        self.direction = nn.Linear(direction_size, half, bias=False)
        self.colour = nn.Linear(half, 3)

    def styles(self, latents: Tensor, classes: Tensor) -> Tensor:
        """Scales and shifts of all layers.

        Args:
            latents: (B, Z).
            classes: Int64 (B,).

        Returns:
            (B, 2, sum of the layers' widths).
        """
        styles: Tensor = self.mapping(torch.cat([latents, self.classes(classes)], 1))
        return styles.view(len(styles), 2, -1)

    def forward(self, points: Tensor, directions: Tensor, styles: Tensor) -> Matter:
        """Ask for some points.

        Args:
            points: S on each of N rays of B images, (B, N, S, 3).
            directions: Of the rays, (B, N, 3).
            styles: From `styles`.
        """
        num_samples = points.shape[2]
        where = encode(points, self.config.point_frequencies).flatten(1, 2)
        whither = encode(directions, self.config.direction_frequencies).repeat_interleave(num_samples, 1)
        # No cache: a copy of a weight that is made under no_grad would serve the next forward, and cut its gradient.
        dtype = _AUTOCAST.get(self.precision)
        with torch.autocast(points.device.type, dtype, enabled=dtype is not None, cache_enabled=False):
            scales, shifts = (part.split(self.widths, -1) for part in styles.unbind(1))
            hidden = where
            for index, layer in enumerate(cast(Iterable[nn.Linear], self.layers)):
                inputs = [(layer, hidden)]
                if self.skip is not None and index == self.config.skip_layer:
                    inputs.append((self.skip, where))
                hidden = self.layer(inputs, scales[index], shifts[index])
            density = self.density(hidden)
            inputs = [(self.feature, hidden), (self.direction, whither)]
            colour = self.colour(self.layer(inputs, scales[-1], shifts[-1]))
        size = points.shape[:-1]
        return Matter(colour.to(points.dtype).view(*size, 3), density.to(points.dtype).view(size))

    def layer(self, inputs: list[tuple[nn.Linear, Tensor]], scale: Tensor, shift: Tensor) -> Tensor:
        """One layer: what linear maps make of their inputs, added up, scaled, shifted and bent.

        FiLM's scales are factors on the rows of the weights. Each image gets weights of its own, and the values that
        would be scaled are neither made nor kept.

        Args:
            inputs: Maps and what they are applied to, (B, M, ...); the first one has a bias.
            scale: (B, W).
            shift: (B, W).

        Returns:
            (B, M, W).
        """
        factor = 1 + scale
        if self.config.conditioning == "adaln":
            values = summed(inputs)
            return modulate(F.layer_norm(values, values.shape[-1:]).to(values.dtype), factor, shift)
        made = torch.addcmul(shift, inputs[0][0].bias, factor)[:, None]
        for linear, values in inputs:
            made = torch.baddbmm(made, values, linear.weight.t() * factor[:, None])
        return F.leaky_relu(made, 0.2, inplace=True)


def summed(inputs: list[tuple[nn.Linear, Tensor]]) -> Tensor:
    """What linear maps make of their inputs, added up."""
    first, *others = (linear(values) for linear, values in inputs)
    total: Tensor = sum(others, start=first)
    return total


def modulate(values: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
    """Values (B, M, W), scaled, shifted and bent; factor and shift are (B, W)."""
    modulated = torch.addcmul(shift[:, None].to(values.dtype), values, factor[:, None].to(values.dtype))
    return F.leaky_relu(modulated, 0.2, inplace=True)


def encode(values: Tensor, num_frequencies: int) -> Tensor:
    """Each value with its sine and cosine at 1, 2, 4, ... radians a unit: (..., 3) to (..., 3 + 6 num_frequencies).

    Source: Mildenhall et al., NeRF (2020), equation 4, without its factor pi.
    """
    if num_frequencies == 0:
        return values
    factors = 2.0 ** torch.arange(num_frequencies, device=values.device, dtype=values.dtype)
    angles = (values[..., None, :] * factors[:, None]).flatten(-2)
    return torch.cat([values, angles.sin(), angles.cos()], -1)
