"""How much memory a step needs, and for what."""

from frostline.memory.batches import estimate_by_batches
from frostline.memory.estimation import estimate
from frostline.memory.export import chrome_trace, memory_snapshot
from frostline.memory.measurement import Workload, measure
from frostline.memory.recording import Recording, recording
from frostline.memory.run import MeasuredRun

__all__ = [
    "MeasuredRun",
    "Recording",
    "Workload",
    "chrome_trace",
    "estimate",
    "estimate_by_batches",
    "measure",
    "memory_snapshot",
    "recording",
]
