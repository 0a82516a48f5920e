"""How much memory a step needs, and for what."""

from frostline.memory.export import chrome_trace, memory_snapshot
from frostline.memory.measurement import Workload, estimate, measure
from frostline.memory.recording import Recording, recording
from frostline.memory.run import MeasuredRun

__all__ = [
    "MeasuredRun",
    "Recording",
    "Workload",
    "chrome_trace",
    "estimate",
    "measure",
    "memory_snapshot",
    "recording",
]
