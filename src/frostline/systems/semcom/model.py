"""Transmitter, channel and receiver as one module, whose only trainable parameters are the codec's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from frostline.config import MemoryConfig
from frostline.errors import ConfigError
from frostline.regions import freeze_, preserved
from frostline.systems.semcom.backbone import Backbone
from frostline.systems.semcom.channel import Channel, Realisation
from frostline.systems.semcom.codec import build_codec
from frostline.systems.semcom.config import SemcomSystemConfig
from frostline.systems.semcom.data import Batch
from frostline.systems.semcom.receiver import Receiver
from frostline.systems.semcom.transmitter import Transmitter
from frostline.training import Loss


class SemcomModel(nn.Module):
    """A codec in the middle of a frozen Florence-2.

    The frozen parts are registered once each, so `.parameters()` lists nothing twice; they stay in eval mode
    whatever `.train()` is called above them.

    Args:
        backbone: The frozen model.
        system: Cut, codec, channel.
        memory: What to trade for memory.
        image_size: Height and width of pictures.
        compression: Your own module instead of the configured one: (B, N, D), (B,) to (B, ..., 2c).
        decompression: Its counterpart: (B, ..., 2c), (B,) to (B, N, D).

    Raises:
        ConfigError: Only one half of a codec was given.
    """

    def __init__(
        self,
        backbone: Backbone,
        system: SemcomSystemConfig,
        memory: MemoryConfig,
        *,
        image_size: int,
        compression: nn.Module | None = None,
        decompression: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if (compression is None) != (decompression is None):
            raise ConfigError("half a codec", do="give both compression= and decompression=, or neither")
        self.shape = backbone.features_shape(system.mode, image_size)
        self.num_source_values = 3 * image_size**2
        if compression is None and system.codec != "none":
            compression, decompression = build_codec(
                system.codec, self.shape[1], system.symbols_per_token, system.hidden_dim
            )
        self.transmitter = Transmitter(backbone, compression, mode=system.mode, chunk_size=memory.upstream_chunk)
        self.channel = Channel(system.channel)
        self.receiver = Receiver(backbone, decompression, mode=system.mode, loss_chunk_tokens=memory.loss_chunk_tokens)
        for part in (backbone.tower, backbone.projector, self.receiver.language_model, self.receiver.head):
            if part is not None:
                freeze_(part)

    def forward(self, features: Tensor, snr_db: Tensor, noise_seeds: Sequence[int]) -> Tensor:
        """Send features through the channel and rebuild them.

        Args:
            features: (B, N, D) at the transmitter.
            snr_db: Es/N0 of each sample, (B,).
            noise_seeds: Seed of each sample's channel.

        Returns:
            Features (B, N, D) at the receiver.
        """
        symbols, amplitude = self.transmitter(features, snr_db)
        realisation = Realisation.draw(symbols.shape, noise_seeds, symbols.device)
        received = self.channel(symbols, snr_db, realisation)
        return self.receiver.features(received, snr_db, amplitude=amplitude, shape=self.shape)

    def features_of(self, batch: Batch) -> Tensor:
        """Features (B, N, D) of a batch: cached ones, or what the frozen transmitter makes of its pictures."""
        if batch.features is not None:
            return batch.features
        assert batch.pixels is not None, "a batch holds pixels or features"
        return self.transmitter.features(batch.pixels)

    def loss(self, batch: Batch) -> Loss:
        """Mean cross-entropy of the answers after the channel, in nats a token."""
        rebuilt = self(self.features_of(batch), batch.snr_db, batch.noise_seeds)
        loss = self.receiver.loss(rebuilt, batch.tasks, batch.labels)
        return Loss(loss, {"token_loss": loss})

    @torch.no_grad()
    def num_symbols(self) -> int:
        """Complex channel uses of one picture; found by sending one, which leaves the codec as it was."""
        device = self.receiver.head.weight.device
        with preserved(self):
            self.eval()
            symbols, _ = self.transmitter(torch.zeros(1, *self.shape, device=device), torch.zeros(1, device=device))
        return int(symbols.numel())

    def bandwidth_ratio(self) -> float:
        """Channel uses k over source values n = 3 S^2."""
        return self.num_symbols() / self.num_source_values
