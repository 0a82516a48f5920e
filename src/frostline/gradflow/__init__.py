"""Is the gradient whole? Where it is cut, what should stand still and moves, and what memory is paid for nothing."""

from frostline.gradflow.audit import Audit, assert_gradients_flow, audit, auditing
from frostline.gradflow.codes import CODES, Code
from frostline.gradflow.intent import Intent

__all__ = ["CODES", "Audit", "Code", "Intent", "assert_gradients_flow", "audit", "auditing"]
