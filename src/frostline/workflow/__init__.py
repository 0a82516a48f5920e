"""Configuration in, record out: the one place where rooms meet."""

from frostline.workflow.demo import demo
from frostline.workflow.evaluate import evaluate
from frostline.workflow.measure import measure_system
from frostline.workflow.train import train

__all__ = ["demo", "evaluate", "measure_system", "train"]
