"""Run phases: one plain loop for every system, on one process or many, resumed bit by bit."""

from frostline.training.checkpoint import Checkpoint, CheckpointStore
from frostline.training.group import Group
from frostline.training.interrupt import Interrupt
from frostline.training.loading import Batch, BatchStream, Dataset, Sample
from frostline.training.log import RunLog
from frostline.training.loop import Observer, Reviewed, System, run
from frostline.training.phase import Loss, Phase, Precision, autocast, check_ownership
from frostline.training.schedule import Schedule, constant, cosine, milestones, one_cycle
from frostline.training.step import bare_step, run_step

__all__ = [
    "Batch",
    "BatchStream",
    "Checkpoint",
    "CheckpointStore",
    "Dataset",
    "Group",
    "Interrupt",
    "Loss",
    "Observer",
    "Phase",
    "Precision",
    "Reviewed",
    "RunLog",
    "Sample",
    "Schedule",
    "System",
    "autocast",
    "bare_step",
    "check_ownership",
    "constant",
    "cosine",
    "milestones",
    "one_cycle",
    "run",
    "run_step",
]
