"""How much memory a step needs, and for what."""

from frostline.memory.measurement import Workload, estimate, measure

__all__ = ["Workload", "estimate", "measure"]
