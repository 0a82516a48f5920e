"""See one step, on real or fake tensors: an allocation log, and models that take no memory."""

from frostline.tracing.fake import FakeTensors, build_fake, fake_tensors
from frostline.tracing.log import Allocation, AllocationLog, Kind, Phase
from frostline.tracing.memtrace import MemTrace

__all__ = [
    "Allocation",
    "AllocationLog",
    "FakeTensors",
    "Kind",
    "MemTrace",
    "Phase",
    "build_fake",
    "fake_tensors",
]
