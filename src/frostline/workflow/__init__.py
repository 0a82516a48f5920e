"""Configuration in, record out: the one place where rooms meet."""

from frostline.workflow.audit import audit_script, audit_system
from frostline.workflow.demonstration import demo
from frostline.workflow.evaluation import evaluate
from frostline.workflow.generation import generate
from frostline.workflow.measurement import measure_system
from frostline.workflow.planning import plan_system, prove_system
from frostline.workflow.run import train
from frostline.workflow.session import make_directory

__all__ = [
    "audit_script",
    "audit_system",
    "demo",
    "evaluate",
    "generate",
    "make_directory",
    "measure_system",
    "plan_system",
    "prove_system",
    "train",
]
