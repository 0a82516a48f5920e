"""Cheaper ways to do the same: operators with the plain one's gradients."""

from frostline.ops.bfloat16_weights import Bfloat16Weights, store_bfloat16_
from frostline.ops.checkpointing import Checkpointing, checkpoint_
from frostline.ops.chunks import chunked_map
from frostline.ops.compress import Compression, compress_
from frostline.ops.cross_entropy import chunked_cross_entropy
from frostline.ops.deferred import deferred_map
from frostline.ops.feature_cache import FeatureCache, cache_key
from frostline.ops.lean import Lean, lean_
from frostline.ops.masked_batch_norm import MaskedBatchNorm1d, MaskedBatchNorm2d, masked_batch_norm
from frostline.ops.micro_batches import backward_in_micro_batches
from frostline.ops.offload import Offload, offload_
from frostline.ops.recipes import Recipes

__all__ = [
    "Bfloat16Weights",
    "Checkpointing",
    "Compression",
    "FeatureCache",
    "Lean",
    "MaskedBatchNorm1d",
    "MaskedBatchNorm2d",
    "Offload",
    "Recipes",
    "backward_in_micro_batches",
    "cache_key",
    "checkpoint_",
    "chunked_cross_entropy",
    "chunked_map",
    "compress_",
    "deferred_map",
    "lean_",
    "masked_batch_norm",
    "offload_",
    "store_bfloat16_",
]
