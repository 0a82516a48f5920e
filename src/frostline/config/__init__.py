"""What was asked: frozen dataclasses, read from defaults, a YAML file and the command line, in this order."""

from frostline.config.load import ConfigSource, dump_config, load_config, read_yaml
from frostline.config.sections import DataConfig, MemoryConfig, RunConfig, SystemConfig, TrainingConfig

__all__ = [
    "ConfigSource",
    "DataConfig",
    "MemoryConfig",
    "RunConfig",
    "SystemConfig",
    "TrainingConfig",
    "dump_config",
    "load_config",
    "read_yaml",
]
