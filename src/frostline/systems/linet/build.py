"""From the configuration to a network and its modality dropout."""

from __future__ import annotations

from frostline.systems.linet.availability import ModalityDropout
from frostline.systems.linet.config import LinetSystemConfig
from frostline.systems.linet.network import LINet
from frostline.systems.linet.treatment import Treatment


def build_network(config: LinetSystemConfig, num_classes: int = 19) -> LINet:
    """The network with initial weights, treated as the configuration asks.

    Args:
        config: Of the network.
        num_classes: Where the configuration leaves them to the data set.

    Raises:
        ConfigError: Values that make no network.
    """
    model = LINet(
        config.num_classes or num_classes,
        config.stream_channels,
        depth=config.depth,
        width_multiplier=config.width_multiplier,
        fill=config.fill,
        dropout=config.dropout,
        initialisation=config.initialisation,
    )
    model.treatment = build_treatment(config)
    return model


def build_treatment(config: LinetSystemConfig) -> Treatment:
    """What the configuration trades for memory."""
    return Treatment(recompute=config.recompute, stem_slices=config.stem_slices)


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
