"""Choose what to recompute, to shrink or to cut into pieces, so that a step fits into memory."""

from frostline.planner.batch import LargestBatch, largest_batch
from frostline.planner.chunking import chunk_
from frostline.planner.installation import Applied, apply_
from frostline.planner.proving import prove
from frostline.planner.search import Budget, Planner, plan, plan_blueprint, plan_workload
from frostline.planner.units import find_units

__all__ = [
    "Applied",
    "Budget",
    "LargestBatch",
    "Planner",
    "apply_",
    "chunk_",
    "find_units",
    "largest_batch",
    "plan",
    "plan_blueprint",
    "plan_workload",
    "prove",
]
