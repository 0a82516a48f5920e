"""The transmitter: the frozen part in front of the codec, and the compression."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from frostline.errors import StepError
from frostline.ops import chunked_map
from frostline.systems.semcom.backbone import Backbone, CutPoint
from frostline.systems.semcom.channel import unit_power


class Transmitter(nn.Module):
    """Pictures to channel symbols.

    Args:
        backbone: The frozen Florence-2; only the parts before the cut are used.
        compression: Features (B, N, D) and snr_db (B,) to real values (B, ..., 2c); None sends the features.
        mode: Where the model is cut.
        chunk_size: Pictures that pass the frozen tower at once; 0 for all.
    """

    def __init__(
        self,
        backbone: Backbone,
        compression: nn.Module | None,
        *,
        mode: CutPoint = "vision_tower",
        chunk_size: int = 0,
    ) -> None:
        super().__init__()
        self.tower: nn.Module | None = backbone.tower
        self.projector = backbone.projector if mode == "image_proj_norm" else None
        self.compression = compression
        self.chunk_size = chunk_size

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """What the frozen part makes of pictures.

        It lies upstream of everything that trains, so autograd would record nothing here anyway: `no_grad` is
        insurance against a parameter somebody unfreezes, and saves 0 bytes.

        Args:
            pixels: Normalised pictures (B, 3, S, S).

        Returns:
            Tokens (B, N, D), in float32 also where the tower runs in bfloat16.
        """
        return chunked_map(self._features, pixels, chunk_size=self.chunk_size)

    def release_(self) -> None:
        """Let go of the frozen parts, once every feature they are needed for is cached."""
        self.tower = self.projector = None

    def _features(self, pixels: Tensor) -> Tensor:
        if self.tower is None:
            raise StepError("the tower was released", do="read features from the cache, or build the system anew")
        dtype = next(self.tower.parameters()).dtype
        map_NCHW: Tensor = self.tower(pixels.to(dtype)).last_hidden_state
        tokens: Tensor
        tokens = map_NCHW.flatten(2).transpose(1, 2) if self.projector is None else self.projector(map_NCHW)
        return tokens.to(torch.promote_types(dtype, torch.float32))

    def forward(self, features: Tensor, snr_db: Tensor) -> tuple[Tensor, Tensor]:
        """Compress features and normalise their power.

        Args:
            features: (B, N, D).
            snr_db: Es/N0 the codec should expect, (B,).

        Returns:
            Symbols of unit average power, complex (B, ..., c), and the amplitude (B,) divided out.

        Raises:
            ShapeError: The compression returned an odd number of values.
        """
        return unit_power(features if self.compression is None else self.compression(features, snr_db))
