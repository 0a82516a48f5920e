"""Measure one step of a system, or predict it without weights, data or a GPU."""

from __future__ import annotations

from frostline.config import RunConfig
from frostline.errors import ConfigError
from frostline.memory import measure
from frostline.records import MemoryReport
from frostline.workflow.session import Device, open_group, verbs_of


def measure_system(config: RunConfig, *, fake: bool = False, device: Device = "auto") -> MemoryReport:
    """Where the bytes of one training step go.

    Args:
        config: Of any system.
        fake: Predict on fake tensors.
        device: Where a real step runs; ``auto`` takes a GPU where there is one.

    Raises:
        ConfigError: A value cannot be used, or nothing trains.
        DataError: The data cannot be used.
        DeviceError: The device is not there.
    """
    verbs = verbs_of(config)
    if fake:
        return verbs.estimate_step(config)
    group = open_group(device)
    try:
        system = verbs.build(config, group, None)
        if not system.phases:
            raise ConfigError("the system has 0 trainable parameters: there is no training step to measure")
        work = system.workload()
        system.release_upstream_()
        return measure(work.step, work.model, optimizers=work.optimizers, inputs=work.inputs)
    finally:
        group.close()
