"""Frozen layers that keep for backward only what the gradient of their input needs."""

from frostline.ops.lean.install import Lean, lean_

__all__ = ["Lean", "lean_"]
