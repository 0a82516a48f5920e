"""ti as a system: what trains, on what, from which configuration."""

from __future__ import annotations

from contextlib import closing
from dataclasses import fields
from math import ceil
from pathlib import Path

import torch
from torch import nn

from frostline.errors import ConfigError
from frostline.memory import Workload
from frostline.records import Component, Plan
from frostline.scenes import THINGS
from frostline.systems.ti.batches import Batch, Latents, Progress, TiDataset, collate, open_sources
from frostline.systems.ti.config import TiConfig, TiMemoryConfig
from frostline.systems.ti.drawing import configured_sampling
from frostline.systems.ti.files import describe_concepts
from frostline.systems.ti.image_model import LazyTokenizer, find_image_model
from frostline.systems.ti.infinity.treatment import Treated, Treatment, treat_
from frostline.systems.ti.model import TiModel
from frostline.systems.ti.phase import concept_phase, new_concepts, training_step
from frostline.systems.ti.scratch import make_scratch
from frostline.systems.ti.texts import Texts
from frostline.systems.ti.validation import Reviewer, validation_prompts
from frostline.training import BatchStream, Group, Sample
from frostline.units import format_bytes


class TiSystem:
    """A few vectors trained in front of a frozen Infinity.

    Args:
        config: The whole configuration.
        group: This process among the others; its device is used.
        directory: The run's own, for caches, stored weights and validation pictures.
        treatment: What to trade for memory, instead of what the configuration says.

    Attributes:
        image_model: What the model's directory holds.
        encoder: The text encoder, let go once every prompt is cached.
        tokenizer: The image tokenizer, let go once every picture is cached.
        concepts: What trains.
        model: The transformer and the concepts.
        phases: One, ``concept``.
        plan: What `memory.budget` made of it; None without one.

    Raises:
        ConfigError: A model, a file or a value that cannot be used.
        DataError: Pictures or captions that cannot be used.
    """

    name = "ti"

    def __init__(
        self, config: TiConfig, group: Group, *, directory: Path | None = None, treatment: Treatment | None = None
    ) -> None:
        check_config(config)
        self.config, self.group, self.directory = config, group, directory
        self.plan: Plan | None = None
        self.treatment = configured_treatment(config.memory) if treatment is None else treatment
        _check_treatment(self.treatment, config)
        self.image_model = find_image_model(config.system)
        self.is_inside = config.system.concept.space == "t5-input"
        self.encoder = self.image_model.load_text_encoder(group.device, dtype=torch.float32 if self.is_inside else None)
        self.tokenizer = LazyTokenizer(self.image_model, group.device)
        torch.manual_seed(config.training.seed)
        self.concepts = new_concepts(config, self.encoder)
        self.sources = open_sources(config, self.image_model.image_size)
        inner = self.encoder.model if self.is_inside else None
        self.model = TiModel(self.image_model.load_transformer(), self.concepts, inner)
        self._scratch: Path | None = None
        self._treated = self._treat_()
        cache = self._place() if config.memory.feature_cache == "disk" else None
        self.latents = Latents(self.sources, self.image_model, self.tokenizer, directory=cache)
        texts = [text for source in self.sources for text in source.prompts]
        self.texts = Texts(self.encoder, [self.encoder.rewrite(text, self.concepts) for text in texts], cache)
        shown = [prompt for concept in self.concepts for prompt in validation_prompts(config, concept.name)]
        self.validation_texts = Texts.of(self.encoder, shown, self.concepts, cache)
        self.phases = (concept_phase(self.model, self.texts, config, self.image_model.schedule, group.device),)

    def learning(self) -> tuple[str, ...]:
        """Every concept, whatever an optimizer holds."""
        return tuple(concept.name for concept in self.concepts)

    def batches(self) -> BatchStream[Batch]:
        """Training batches: a step is an epoch, so no number of pictures is too small for a batch or for workers."""
        training = self.config.training
        return BatchStream(
            self._dataset(),
            collate,
            data=self.config.data,
            batch_size=training.batch_size,
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            seed=training.seed,
            group=self.group,
        )

    def review(self, step: int) -> None:
        """Write pictures when they are due; without a directory there is nowhere to write them."""
        if self.directory is not None:
            Reviewer(self, self.directory).review(step)

    def checkpoint_metadata(self, step: int) -> dict[str, str]:
        """What makes a checkpoint's trainables a concept file."""
        return describe_concepts(
            self.concepts,
            base_model=self.image_model.identity,
            text_encoder=self.encoder.identity,
            step=step,
        )

    def fill_cache(self, progress: Progress) -> None:
        """Encode every picture and every prompt that training and validation ask for.

        Prompts come first: the text encoder makes room for the image tokenizer, which needs it most. On disk, the main
        process fills the files and the others read them.
        """
        shares = self.config.memory.feature_cache == "disk" and self.group.world_size > 1
        if shares and not self.group.is_main:
            self.group.barrier()
        self.texts.fill_()
        self.validation_texts.fill_()
        self._release_encoder_()
        self.latents.fill_(progress)
        if shares and self.group.is_main:
            self.group.barrier()

    def release_upstream_(self) -> None:
        """Let go of the image tokenizer, and of the text encoder where it is no part of the step."""
        self.tokenizer.release_()
        self._release_encoder_()

    def _release_encoder_(self) -> None:
        if not self.is_inside:
            self.encoder.release_()

    def notes(self) -> tuple[str, ...]:
        """What a reader of the run should know."""
        config, model = self.config, self.image_model
        pictures = ", ".join(
            f"{concept.name} {len(source)}" for concept, source in zip(self.concepts, self.sources, strict=True)
        )
        vectors = ", ".join(f"{c.num_vectors} of {c.name} from {c.carrier}" for c in self.concepts)
        height, width = model.image_size
        where = "behind" if not self.is_inside else "before"
        lines = [
            f"{model.name}: {height} x {width} pixels, {model.schedule.num_tokens:,} tokens in"
            f" {model.schedule.num_scales} scales of {model.transformer_config.token_bits} bits",
            f"pictures: {pictures}; {len(self.latents)} cached features, {format_bytes(self.latents.nbytes)}",
            f"vectors of {self.encoder.width} {where} the text encoder: {vectors}; all else is frozen",
            f"every scale's share of the loss: {config.system.loss.weighting}; prompts are never dropped",
        ]
        if self.treatment != Treatment():
            lines.append(f"for memory: {self.treatment}")
        return tuple(lines)

    def components(self) -> tuple[Component, ...]:
        """The frozen models and the concepts, for the run's header."""
        encoder = "part of the step" if self.is_inside else "once a prompt, then let go"
        parts: list[tuple[str, nn.Module, str]] = [
            ("text encoder", self.encoder.model, encoder),
            ("image tokenizer", self.tokenizer.model, "once a picture, then let go"),
            ("transformer", self.model.transformer, str(self.treatment)),
        ]
        found = [_component(name, part, note) for name, part, note in parts]
        return (
            *found,
            *(_component(concept.name, concept, f"starts as {concept.carrier}") for concept in self.concepts),
        )

    def workload(self) -> Workload:
        """One training step to be measured: on one micro-batch, or on as many as name every concept."""
        self.fill_cache(lambda done, total: None)
        with closing(self.batches().iterate(0)) as batches:
            size = len(next(batches)[0])
        dataset, num = self._dataset(), ceil(len(self.concepts) / size)
        examples = dataset.__getitems__([Sample(number, 0) for number in range(num * size)])
        micro_batches = [collate(examples[start : start + size]) for start in range(0, num * size, size)]
        return training_step(self.model, self.phases[0], [batch.to(self.group.device) for batch in micro_batches])

    def _dataset(self) -> TiDataset:
        training, model = self.config.training, self.image_model
        return TiDataset(
            self.sources,
            self.latents,
            model.quantizer,
            model.schedule,
            bit_flips=self.config.system.loss.bit_flips,
            seed=training.seed,
            num_rows=training.batch_size,
        )

    def _treat_(self) -> Treated:
        """Treat the transformer, then move it: stored weights never take a device twice their size.

        The main process is first: the others find its file of float32 weights.
        """
        weights = None
        if self.treatment.bfloat16_weights:
            weights = self._place() / f"weights-{self.image_model.identity.rpartition('@')[2]}.safetensors"
        to_file = self.config.memory.offload == "disk" or self.group.device.type == "cpu"
        folder = self._place() if self.treatment.offload and to_file else None
        shares = self.treatment.bfloat16_weights and self.group.world_size > 1
        if shares and not self.group.is_main:
            self.group.barrier()
        treated = treat_(self.model.transformer, self.treatment, weight_file=weights, folder=folder)
        if shares and self.group.is_main:
            self.group.barrier()
        self.model.transformer.to(self.group.device)
        return treated

    def _place(self) -> Path:
        """Where files of this run go: its directory, or a temporary one that ends with the system."""
        if self.config.memory.feature_cache_directory:
            place = Path(self.config.memory.feature_cache_directory).expanduser()
        elif self.directory is not None:
            place = self.directory
        else:
            self._scratch = place = self._scratch or make_scratch(self)
        place.mkdir(parents=True, exist_ok=True)
        return place


def configured_treatment(memory: TiMemoryConfig) -> Treatment:
    """What the configuration trades for memory."""
    blocks = memory.checkpoint == "all"
    return Treatment(
        bfloat16_weights=memory.bfloat16_weights,
        checkpoint_blocks=blocks,
        checkpoint_parts=memory.checkpoint_parts and blocks,
        offload=memory.offload != "none",
    )


def _check_memory(memory: TiMemoryConfig) -> None:
    """Refuse what is for other systems.

    Raises:
        ConfigError: Such a key was given.
    """
    own, plain = TiMemoryConfig.__annotations__, TiMemoryConfig()
    for field in fields(TiMemoryConfig):
        if field.name in own or field.name in ("budget", "feature_cache_directory"):
            continue
        if getattr(memory, field.name) != getattr(plain, field.name):
            raise ConfigError(
                f"ti does not read memory.{field.name}",
                do="leave it out; --memory.bfloat16-weights, --memory.checkpoint and --memory.offload are read",
            )


def check_config(config: TiConfig) -> None:
    """Refuse values that cannot be used.

    Raises:
        ConfigError: There is one.
    """
    _check_memory(config.memory)
    if config.training.weight_decay:
        raise ConfigError(
            f"training.weight_decay is {config.training.weight_decay:g}: a decayed concept loses its length, not its"
            " direction",
            do="leave it at 0",
        )
    if not 0 <= config.system.loss.bit_flips <= 1:
        raise ConfigError(f"system.loss.bit_flips is {config.system.loss.bit_flips:g}", do="give a share of the bits")
    unread = [key for key in ("path", "flip") if config.data.kind == "things" and getattr(config.data, key)]
    if unread:
        raise ConfigError(
            f"data.kind is things, which does not read data.{unread[0]}",
            do="add --data.kind folders, or leave it out",
        )
    unknown = [name for name in config.data.concept if name not in THINGS]
    if config.data.kind == "things" and unknown:
        raise ConfigError(
            f"no such thing: {', '.join(unknown)}", where="--data.concept", do=f"choose from {', '.join(THINGS)}"
        )
    configured_sampling(config.system.sampling)


def _check_treatment(treatment: Treatment, config: TiConfig) -> None:
    if treatment.bfloat16_weights and config.training.precision != "bf16-mixed":
        raise ConfigError(
            f"bfloat16 weights are what bf16-mixed computes with, and the precision is {config.training.precision}",
            where="--memory.bfloat16-weights, --training.precision",
            do="take --training.precision bf16-mixed, or leave the weights in float32",
        )


def _component(name: str, part: nn.Module, note: str) -> Component:
    parameters = list(part.parameters())
    trains = [parameter for parameter in parameters if parameter.requires_grad]
    return Component(
        name=name,
        num_parameters=sum(parameter.numel() for parameter in parameters),
        num_trainable=sum(parameter.numel() for parameter in trains),
        mode="train" if trains else "eval",
        note=note,
    )
