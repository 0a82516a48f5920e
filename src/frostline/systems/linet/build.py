"""From the configuration to a network and its modality dropout."""

from __future__ import annotations

from frostline.systems.linet.availability import ModalityDropout
from frostline.systems.linet.config import LinetSystemConfig
from frostline.systems.linet.network import LINet
from frostline.systems.linet.treatment import Treatment


def build_network(config: LinetSystemConfig) -> LINet:
    """The network with initial weights, treated as the configuration asks.

    Raises:
        ConfigError: Values that make no network.
    """
    model = LINet(
        config.num_classes,
        config.stream_channels,
        depth=config.depth,
        width_multiplier=config.width_multiplier,
        fill=config.fill,
        dropout=config.dropout,
        initialisation=config.initialisation,
    )
    model.treatment = Treatment(recompute=config.recompute, stem_slices=config.stem_slices)
    return model


def build_modality_dropout(config: LinetSystemConfig) -> ModalityDropout | None:
    """What training takes away; None for nothing.

    Raises:
        ConfigError: A rate above 1.
    """
    if config.modality_dropout == "none":
        return None
    return ModalityDropout(
        sampler=config.modality_dropout,
        rate=config.modality_dropout_rate,
        start=config.modality_dropout_start,
        ramp=config.modality_dropout_ramp,
        schedule=config.modality_dropout_schedule,
    )
