"""Is the gradient whole? Where it is cut, what should stand still and moves, and what memory is paid for nothing."""

from frostline.gradflow.audit import Audit, assert_gradients_flow, audit, auditing
from frostline.gradflow.check import GradientCheck, check_gradients
from frostline.gradflow.codes import CODES, Code
from frostline.gradflow.intent import Intent

__all__ = [
    "CODES",
    "Audit",
    "Code",
    "GradientCheck",
    "Intent",
    "assert_gradients_flow",
    "audit",
    "auditing",
    "check_gradients",
]
