"""graf as a system: what trains, on what, from which configuration."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import fields
from functools import cached_property
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from frostline.config import MemoryConfig
from frostline.errors import ConfigError
from frostline.memory import Workload
from frostline.records import Component, Plan
from frostline.systems.graf.batches import Batch, GrafDataset, collate
from frostline.systems.graf.config import GrafConfig
from frostline.systems.graf.metrics import Scorer
from frostline.systems.graf.model import GrafModel
from frostline.systems.graf.objective import discriminator_loss, generator_loss, reconstruction_loss
from frostline.systems.graf.review import Reviewer
from frostline.systems.graf.sources import Source, open_source
from frostline.training import BatchStream, Group, Loss, Phase, Schedule, bare_step, constant, cosine, milestones

_DISCRIMINATOR, _GENERATOR = 0, 1  # a batch's draws


class GrafSystem:
    """A discriminator and the generator of a radiance field, or a field alone that reconstructs a scene.

    Args:
        config: The whole configuration.
        group: This process among the others; its device is used.
        directory: The run's own, for samples, scores and the best generator.

    Attributes:
        model: Both players and the generator's average.
        phases: ``discriminator`` and ``generator``, in this order; in reconstruction the latter alone.
        plan: What `memory.budget` made of it; None without one.

    Raises:
        ConfigError: A value that cannot be used.
        DataError: Data that cannot be used.
    """

    name = "graf"

    def __init__(self, config: GrafConfig, group: Group, *, directory: Path | None = None) -> None:
        check_memory(config.memory)
        self.config, self.group, self.directory = config, group, directory
        self.plan: Plan | None = None
        torch.manual_seed(config.training.seed)
        self.model = GrafModel(config.system, config.training.precision).to(group.device)
        self.source = self._open("train")
        num_classes = len(self.source.names)
        if num_classes != config.system.field.num_classes:
            raise ConfigError(
                f"the data set has {num_classes} classes, the field {config.system.field.num_classes}",
                do=f"give --system.field.num-classes {num_classes}",
            )
        self.phases = graf_phases(self.model, config, group.device)

    @cached_property
    def scorer(self) -> Scorer:
        """Scores generators on this data."""
        return Scorer(self.config, self.source, self._open("test"))

    def batches(self) -> BatchStream[Batch]:
        """Training batches, with what is random about the renderings beside them."""
        training = self.config.training
        return BatchStream(
            GrafDataset(self.source, latent_size=self.config.system.field.latent_size, seed=training.seed),
            collate,
            data=self.config.data,
            batch_size=training.batch_size,
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            seed=training.seed,
            group=self.group,
        )

    def review(self, step: int) -> None:
        """Write samples and scores when they are due; without a directory there is nowhere to write them."""
        if self.directory is not None:
            Reviewer(self.config, self.directory, self.scorer).review(self.model, step)

    def fill_cache(self, progress: Callable[[int, int], None]) -> None:
        """Draw the solids, where they are drawn."""
        self.source.prepare(progress)

    def release_upstream_(self) -> None:
        """Nothing is frozen."""

    def notes(self) -> tuple[str, ...]:
        """What a reader of the run should know."""
        system, generator = self.config.system, self.model.generator
        per_epoch = self.batches().steps_per_epoch
        rays, chunk = generator.sampler.size**2, generator.chunk_rays  # a budget's, where there is one
        lines = [
            f"{len(self.source.classes):,} images of {len(self.source.names)} classes at {generator.whole_size} pixels,"
            f" {per_epoch} steps an epoch",
            f"{rays:,} rays an image"
            + (f", {chunk} rays at once, {generator.recompute} recompute" if chunk else ", all at once"),
        ]
        if system.ccsr.enabled:
            sees = "its result" if system.ccsr.loss == "adversarial" else "the rendering"
            field = "reaches" if system.ccsr.field_gradient else "does not reach"
            lines.append(
                f"super-resolution {system.ccsr.scale}x on whole images, loss {system.ccsr.loss}: the other player sees"
                f" {sees}; its gradient {field} the field"
            )
        if self.config.training.precision != "32-true":
            lines.append(f"{self.config.training.precision} in the field's MLP alone")
        return tuple(lines)

    def components(self) -> tuple[Component, ...]:
        """The parts of both players, for the run's header."""
        generator = self.model.generator
        parts: list[tuple[str, nn.Module | None]] = [
            ("radiance field", generator.field),
            ("coarse field", generator.coarse_field),
            ("super-resolution", generator.superres),
            ("discriminator", self.model.discriminator),
        ]
        return tuple(_component(name, part) for name, part in parts if part is not None)

    def workload(self) -> Workload:
        """One training step of every phase on one batch, to be measured."""
        with closing(self.batches().iterate(0)) as batches:
            batch = next(batches)[0].to(self.group.device)
        return training_step(self.model, self.phases, batch)

    def _open(self, split: str) -> Source:
        return open_source(
            self.config.data,
            split="test" if split == "test" else "train",
            seed=self.config.training.seed,
            size=self.model.generator.whole_size,
        )


def check_memory(memory: MemoryConfig) -> None:
    """Refuse what is for systems with a frozen part.

    Raises:
        ConfigError: Such a key was given.
    """
    plain = MemoryConfig()
    for field in fields(MemoryConfig):
        if field.name != "budget" and getattr(memory, field.name) != getattr(plain, field.name):
            raise ConfigError(
                f"graf has no frozen part, and does not read memory.{field.name}",
                do="leave it out; --system.rendering.chunk-rays and --memory.budget are what there is",
            )


def graf_phases(model: GrafModel, config: GrafConfig, device: torch.device) -> tuple[Phase, ...]:
    """The discriminator's phase and the generator's, or the one of a reconstruction.

    Autocast is left to the field, so half precision neither reaches the discriminator nor its penalty; fp16's loss
    scale is the generator's alone.

    Args:
        model: On the device.
        config: Of the run.
        device: Where the losses are computed.
    """
    training, generator, discriminator = config.training, model.generator, model.discriminator
    schedule = _schedule(config)

    def generator_phase(loss: Callable[[Batch], Loss]) -> Phase:
        return Phase(
            "generator",
            loss,
            _num_images,
            (_optimizer(generator, config, training.learning_rate),),
            schedule=schedule,
            device=device,
            clip_norm=training.clip_norm,
            precision=training.precision,
            on_update=model.update_average_,
        )

    if discriminator is None:

        def reconstruct(batch: Batch) -> Loss:
            draw = batch.draw(generator, _GENERATOR, step=player.step)
            return reconstruction_loss(generator, draw, batch.photographs(generator), step=player.step)

        player = generator_phase(reconstruct)
        return (player,)

    def judge(batch: Batch) -> Loss:
        draw = batch.draw(generator, _DISCRIMINATOR, step=judging.step)
        return discriminator_loss(generator, discriminator, draw, batch.photographs(generator), step=judging.step)

    def generate(batch: Batch) -> Loss:
        return generator_loss(
            generator, discriminator, batch.draw(generator, _GENERATOR, step=player.step), step=player.step
        )

    judging = Phase(
        "discriminator",
        judge,
        _num_images,
        (_optimizer(discriminator, config, config.system.optimizers.discriminator_learning_rate),),
        schedule=schedule,
        device=device,
        clip_norm=training.clip_norm,
    )
    player = generator_phase(generate)
    return judging, player


def training_step(model: GrafModel, phases: tuple[Phase, ...], batch: Batch) -> Workload:
    """One step of each phase on a batch."""
    optimizers = tuple(optimizer for phase in phases for optimizer in phase.optimizers)
    return Workload(step=bare_step(phases, [batch]), model=model, optimizers=optimizers, inputs=batch.tensors())


def _optimizer(player: nn.Module, config: GrafConfig, learning_rate: float) -> Optimizer:
    parameters, decay = list(player.parameters()), config.training.weight_decay
    if config.system.optimizers.kind == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=learning_rate, weight_decay=decay)
    return torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.0, 0.99), weight_decay=decay)


def _schedule(config: GrafConfig) -> Schedule:
    training, optimizers = config.training, config.system.optimizers
    warmup = training.warmup_steps
    plain = constant(warmup) if training.schedule == "constant" else cosine(warmup, training.num_steps)
    steps = milestones(optimizers.milestones, optimizers.factor)
    return lambda step: plain(step) * steps(step)


def _num_images(batch: Batch) -> float:
    return float(len(batch))


def _component(name: str, part: nn.Module) -> Component:
    parameters = list(part.parameters())
    return Component(
        name=name,
        num_parameters=sum(parameter.numel() for parameter in parameters),
        num_trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        mode="train",
    )
