"""What was asked: frozen dataclasses, read from defaults, a YAML file and the command line, in this order."""

from frostline.config.load import ConfigSource, config_app, dump_config, load_config, load_request, read_yaml
from frostline.config.sections import (
    Amount,
    Count,
    DataConfig,
    MemoryConfig,
    RunConfig,
    Size,
    SystemConfig,
    TrainingConfig,
    Whole,
)

__all__ = [
    "Amount",
    "ConfigSource",
    "Count",
    "DataConfig",
    "MemoryConfig",
    "RunConfig",
    "Size",
    "SystemConfig",
    "TrainingConfig",
    "Whole",
    "config_app",
    "dump_config",
    "load_config",
    "load_request",
    "read_yaml",
]
