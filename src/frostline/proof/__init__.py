"""Whether two steps give the same gradients, and how that is known."""

from frostline.proof.compare import Gradients, compare_gradients, gradients_of, noise_floor
from frostline.proof.prove import prove_step

__all__ = ["Gradients", "compare_gradients", "gradients_of", "noise_floor", "prove_step"]
