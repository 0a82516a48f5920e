"""The sections every system shares. A system subclasses `DataConfig` and `SystemConfig` for its own keys.

The string under a field is its help, on the command line and in the docs. Annotations are evaluated here, not
postponed: cyclopts would look their names up in the module of whichever class inherits the field.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from cyclopts import Parameter, Token
from cyclopts.validators import Number

from frostline.units import parse_bytes


def _whole_number(kind: Any, tokens: Sequence[Token]) -> int:
    try:
        return int(tokens[0].value)
    except ValueError:  # cyclopts itself rounds 1.5 to 2
        raise ValueError(f"{tokens[0].value!r} is not a whole number") from None


Whole = Annotated[int, Parameter(converter=_whole_number, validator=Number(gte=0))]
"""A whole number from 0 on."""
Count = Annotated[int, Parameter(converter=_whole_number, validator=Number(gte=1))]
"""A whole number from 1 on."""
Amount = Annotated[float, Parameter(validator=Number(gte=0))]
"""A number from 0 on."""


def _size(_: Any, value: str) -> None:
    if value not in ("", "smallest"):
        parse_bytes(value)


Size = Annotated[str, Parameter(validator=_size)]
"""Bytes such as 6GiB, or ``smallest``; empty where nothing is asked."""


_NUM_WORKERS = (
    "Loader processes; 0 loads in the training process. From an SSD 2 to 4 are enough; from a hard disk take 1 or 2,"
    " more make it seek. Windows starts each afresh, which takes seconds. Each holds the data set object and"
    " prefetch_factor batches in host RAM. Results do not depend on the number."
)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How examples reach the step."""

    num_workers: Annotated[Whole, Parameter(help=_NUM_WORKERS)] = 0
    force_num_workers: bool = False
    """Allow more than 4 workers."""
    prefetch_factor: Count = 2
    """Batches each worker prepares ahead; used only with workers."""


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """What to trade for memory. Every choice but `frozen_dtype` leaves the gradients as they were."""

    budget: Size = ""
    """What the step's peak may reach, weights included, such as 6GiB; `smallest` asks for the smallest peak. A plan for
    it says what is recomputed, and `checkpoint` is left aside. Empty makes no plan."""
    checkpoint: Literal["none", "all"] = "all"
    """Recompute the frozen layers behind the trainable part in backward instead of keeping what they save."""
    loss_chunk_tokens: Whole = 64
    """Target tokens whose logits are alive at once; 0 computes the loss over all of them in one piece."""
    upstream_chunk: Whole = 1
    """Samples that go through the frozen part before the trainable one at once; 0 sends the whole batch."""
    feature_cache: Literal["none", "memory", "disk"] = "none"
    """Compute the features of the frozen part before the trainable one once a sample, and keep them."""
    feature_cache_directory: str = ""
    """Where `feature_cache: disk` keeps its file; empty puts it into the run's directory."""
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"
    """Store frozen weights in this type. bfloat16 halves them and changes gradients by about 1 %."""

    @property
    def recomputes_all(self) -> bool:
        """Whether every frozen layer behind the trainable part is recomputed; with a budget, a plan decides."""
        return self.checkpoint == "all" and not self.budget


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long, how fast and in which precision to train."""

    num_steps: Count = 1000
    """Optimizer updates in all."""
    batch_size: Count = 64
    """Samples an update sees, over all processes and micro-batches."""
    gradient_accumulation_steps: Count = 1
    """Micro-batches a batch is cut into; their gradients are weighted by their number of target tokens."""
    learning_rate: Amount = 1e-3
    """Peak learning rate of AdamW."""
    weight_decay: Amount = 1e-4
    """Decoupled weight decay of AdamW."""
    warmup_steps: Whole = 30
    """Updates over which the learning rate rises linearly."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """How the learning rate goes on after the warm-up; cosine ends at 2 % of the peak."""
    clip_norm: Amount = 0.0
    """Largest global gradient norm; 0 leaves gradients as they are."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Autocast type; 16-mixed scales the loss, with one scaler a phase."""
    seed: Whole = 0
    """Seed of initial values, data order, augmentation and noise."""
    log_every: Count = 100
    """Steps between two lines of the run log."""
    checkpoint_every: Count = 500
    """Steps between two checkpoints; one is always written at the end and on Ctrl-C."""
    tensorboard: bool = False
    """Also write the run log for TensorBoard."""


@dataclass(frozen=True, kw_only=True)
class SystemConfig:
    """A system's own settings."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The whole configuration of a run; each system's own class narrows the four sections."""

    SYSTEM: ClassVar[str]
    """The system's name."""

    data: DataConfig
    memory: MemoryConfig
    training: TrainingConfig
    system: SystemConfig
