"""ti's configuration: a few vectors in the place of a word, in front of a frozen Infinity."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from frostline.config import (
    Amount,
    Count,
    DataConfig,
    MemoryConfig,
    RunConfig,
    SystemConfig,
    TrainingConfig,
    Whole,
)


@dataclass(frozen=True, kw_only=True)
class TiDataConfig(DataConfig):
    """A few pictures of each concept."""

    kind: Literal["things", "folders"] = "things"
    """Drawn things that the model has seen and has no word for, or folders of pictures."""
    concept: tuple[str, ...] = ("heart",)
    """Things: which of them, one for each placeholder."""
    num_pictures: Count = 5
    """Things: pictures of each."""
    path: tuple[str, ...] = ()
    """Folders: one for each placeholder, with 3 to 20 png, jpg, webp or bmp files."""
    captions: Literal["auto", "object", "style", "described"] = "auto"
    """Templates for an object or for a manner, or what each picture shows: things know it, a folder has a text beside
    each picture, cat.txt beside cat.png, with the placeholder in it. auto takes descriptions where there are some."""
    templates: tuple[str, ...] = ()
    """Your own instead, with {} where the placeholder goes."""
    flip: bool = False
    """Folders: mirror pictures at random; not what has a left and a right."""


@dataclass(frozen=True, kw_only=True)
class TiMemoryConfig(MemoryConfig):
    """What to trade for memory. None of it changes a bit of the gradients."""

    checkpoint: Literal["none", "all"] = "all"
    """Keep the input of each transformer block alone, and run it again in backward."""
    checkpoint_parts: bool = True
    """So for a block's self-attention, cross-attention and feed-forward network, one at a time."""
    bfloat16_weights: bool = False
    """Store the blocks' matrices in the type that bf16-mixed casts them to at each use anyway; their float32 values go
    to a file in the run's directory."""
    offload: Literal["none", "host", "disk"] = "none"
    """Where the blocks' inputs are between forward and backward: in host memory, which is for GPUs, or in a file in the
    run's directory, which is also what host means on the CPU."""
    feature_cache: Literal["memory", "disk"] = "memory"
    """Where the features of pictures and prompts are kept: each is computed once, and the models that made them are
    let go."""


@dataclass(frozen=True, kw_only=True)
class ConceptConfig:
    """What trains."""

    placeholder: tuple[str, ...] = ("<s>",)
    """A name for each concept in prompts, in brackets; the data say what each stands for."""
    carrier: tuple[str, ...] = ("thing",)
    """The word that the text encoder reads in its place and that it starts as; one for all, or one for each."""
    num_vectors: Count = 1
    """Positions of a concept in the prompt; a multiple of the carrier's tokens."""
    space: Literal["t5-output", "t5-input"] = "t5-output"
    """Behind the text encoder, which then runs once a prompt; or before it, where it is part of every step."""
    fixed_norm: Literal["auto", "always", "never"] = "auto"
    """Bring vectors back to their first length behind each step. Behind the encoder length means nothing to the model;
    auto does it there alone."""
    ti_lr: Amount = 0.0
    """An absolute learning rate, as published scripts have it; 0 for `training.learning_rate`, which is relative."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What the vectors are trained for: predict the bits of the pictures."""

    weighting: Literal["scales", "sides", "tokens"] = "scales"
    """Every scale weighs the same; one over the root of its tokens, as the published option has it; every token."""
    bit_flips: Amount = 0.1
    """Largest share of turned bits in what the model sees of the coarser scales, which it is to mend."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How pictures are drawn."""

    guidance: Amount = 2.5
    """Strength of classifier-free guidance; 1 for none."""
    temperature: Amount = 0.7
    """Logits of bits are divided by it."""
    top_k: Whole = 0
    """1 takes the likelier value of each bit."""
    top_p: Amount = 0.0
    """The less likely value is left out where its probability is at most 1 - this; 0 leaves none out."""


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Pictures to look at during a run: the loss hardly moves while a concept is learned."""

    every: Whole = 100
    """Steps between two sheets of pictures; the first is before the first step; 0 for none."""
    prompts: tuple[str, ...] = ()
    """With {} for the placeholder; empty for the data's own: every colour on every background, or a photo."""
    num_pictures: Count = 2
    """Of each prompt on a sheet."""
    num_judged: Count = 10
    """Things: pictures of each prompt that evaluation judges."""
    seed: Whole = 1
    """Of the drawn bits: the same in every sheet."""


@dataclass(frozen=True, kw_only=True)
class TiSystemConfig(SystemConfig):
    """Textual inversion for a frozen Infinity."""

    model: str = "nano"
    """nano, or a directory with a transformer, its image tokenizer and its text encoder."""
    transformer: str = ""
    """Its file or folder of shards in the directory, where there are several."""
    image_tokenizer: str = ""
    """The same."""
    text_encoder: str = ""
    """A folder in the directory, or a T5 on the hub (google/flan-t5-xl); empty looks for a folder."""
    size: str = ""
    """Of a published transformer: infinity-2b, infinity-8b or infinity-125m; empty reads it from the file's name."""
    pixels: Literal["0.06M", "0.25M", "0.60M", "1M"] = "0.25M"
    """How large pictures of a published model are."""
    ratio: Amount = 1.0
    """Their height over their width."""
    concept: ConceptConfig = field(default_factory=ConceptConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)


@dataclass(frozen=True, kw_only=True)
class TiTrainingConfig(TrainingConfig):
    """Defaults that suit a few vectors."""

    num_steps: Count = 300
    """Optimizer updates in all."""
    batch_size: Count = 15
    """Pictures an update sees, over all processes and micro-batches, with repetitions."""
    learning_rate: Amount = 0.03
    """Peak learning rate of AdamW over the vectors' root mean square."""
    weight_decay: Amount = 0.0
    """Stays 0: decay pulls a vector to where its gradient is largest."""
    warmup_steps: Whole = 0
    """Updates over which the learning rate rises linearly."""
    log_every: Count = 50
    """Steps between two lines of the run log."""
    checkpoint_every: Count = 100
    """Steps between two checkpoints; one is always written at the end and on Ctrl-C."""


@dataclass(frozen=True, kw_only=True)
class TiConfig(RunConfig):
    """Everything a ti run needs."""

    SYSTEM: ClassVar[str] = "ti"

    data: TiDataConfig = field(default_factory=TiDataConfig)
    memory: TiMemoryConfig = field(default_factory=TiMemoryConfig)
    training: TiTrainingConfig = field(default_factory=TiTrainingConfig)
    system: TiSystemConfig = field(default_factory=TiSystemConfig)


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """What `frostline generate ti` is told beside the configuration."""

    prompt: tuple[str, ...] = ()
    """What to draw, with the concepts' placeholders; several give several pictures."""
    concept: tuple[str, ...] = ()
    """Files of concepts; a run's own with --checkpoint."""
    negative: str = ""
    """What guidance leads away from; it may name concepts."""
    cfg: Amount | None = None
    """Strength of classifier-free guidance; the configuration's by default."""
    seed: Whole = 0
    """Of the drawn bits."""
    num: Count = 1
    """Pictures of each prompt."""


CONFIG = TiConfig
GENERATE_OPTIONS = GenerateOptions
