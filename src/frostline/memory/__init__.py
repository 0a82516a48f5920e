"""How much memory a step needs, and for what."""

from frostline.memory.measure import Workload, estimate, measure

__all__ = ["Workload", "estimate", "measure"]
