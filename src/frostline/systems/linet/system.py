"""linet as a system: what trains, on what, from which configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cached_property

import torch
from torch import nn

from frostline.config import TrainingConfig
from frostline.errors import ConfigError
from frostline.memory import Workload
from frostline.records import Component, Plan
from frostline.systems.linet.batches import Batch
from frostline.systems.linet.budget import Choice, choose_treatment
from frostline.systems.linet.build import build_modality_dropout, build_network
from frostline.systems.linet.config import LinetConfig
from frostline.systems.linet.data import Collate, LinetDataset, open_source
from frostline.systems.linet.groups import parameter_groups
from frostline.systems.linet.layers import synchronise_
from frostline.systems.linet.network import LINet
from frostline.systems.linet.objectives import classification_loss
from frostline.systems.linet.sources import CHANNELS, STREAMS, Source
from frostline.systems.linet.streams import stream_parameters
from frostline.training import BatchStream, Group, Loss, Phase, Sample, bare_step, constant, cosine

_TEST_BATCH = 64


class LinetSystem:
    """A multi-stream ResNet that learns to do without some of its streams.

    Args:
        config: The whole configuration.
        group: This process among the others; its device is used.

    Attributes:
        model: The network.
        phases: One, ``network``.
        choice: The treatment that a budget asked for; None without one.
        plan: The same as a plan.

    Raises:
        ConfigError: A value that cannot be used.
        DataError: Data that cannot be used.
    """

    name = "linet"

    def __init__(self, config: LinetConfig, group: Group) -> None:
        check_streams(config)
        self.config, self.group = config, group
        self.source = open_source(config.data, split="train", seed=config.training.seed)
        num_classes = len(self.source.classes)
        if 0 < config.system.num_classes < num_classes:
            raise ConfigError(
                f"the data set has {num_classes} classes, the network {config.system.num_classes}",
                do="leave out --system.num-classes",
            )
        torch.manual_seed(config.training.seed)
        self.model = build_network(config.system, num_classes).to(group.device)
        self.model.norm_stats = self.source.norm_stats
        synchronise_(self.model, group.world_size > 1 and config.system.batch_statistics == "all")
        self.choice: Choice | None = None
        self.plan: Plan | None = None
        self.dropout = build_modality_dropout(config.system)
        self.phases: tuple[Phase, ...] = (network_phase(self.model, self.loss, config.training, group.device),)

    def choose(self, build_model: Callable[[], LINet], build_step: Callable[[LINet], Workload]) -> None:
        """Take the cheapest treatment that is predicted to fit `memory.budget`."""
        self.choice = choose_treatment(build_model, build_step, self.config.memory.budget)
        self.model.treatment = self.choice.treatment

    def loss(self, batch: Batch) -> Loss:
        """Mean cross-entropy of a batch, in nats."""
        return network_loss(self.model, batch)

    def batches(self) -> BatchStream[Batch]:
        """Training batches; streams are taken away by the epoch's rate."""
        training, data = self.config.training, self.config.data
        return BatchStream(
            LinetDataset(
                self.source,
                image_size=data.image_size,
                random=data.augmentation == "geometric",
                seed=training.seed,
            ),
            Collate(self.dropout, training.seed),
            data=data,
            batch_size=training.batch_size,
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            seed=training.seed,
            group=self.group,
        )

    def test_batches(self) -> Iterator[Batch]:
        """The first `data.num_test` test samples, the middle of each picture, with the streams they have."""
        dataset = LinetDataset(self.test_source, image_size=self.config.data.image_size, random=False, seed=0)
        collate, num = Collate(), self.num_test
        for start in range(0, num, _TEST_BATCH):
            rows = range(start, min(start + _TEST_BATCH, num))
            yield collate(dataset.__getitems__([Sample(row, 0) for row in rows]))

    @cached_property
    def test_source(self) -> Source:
        """The samples of the test split."""
        return open_source(self.config.data, split="test", seed=self.config.training.seed)

    @property
    def num_test(self) -> int:
        """Samples to evaluate on."""
        return min(self.config.data.num_test, self.test_source.num_samples)

    def fill_cache(self, progress: Callable[[int, int], None]) -> None:
        """Draw the scenes, where they are drawn."""
        self.source.prepare(progress)

    def release_upstream_(self) -> None:
        """Nothing is frozen."""

    def notes(self) -> tuple[str, ...]:
        """What a reader of the run should know."""
        data, training = self.config.data, self.config.training
        per_epoch = self.batches().steps_per_epoch
        lines = [
            f"{self.source.num_samples:,} training samples of {len(self.source.classes)} classes,"
            f" {data.image_size} x {data.image_size} pixels, {per_epoch} steps an epoch",
            "only the integrated pathway is classified; a missing stream is neither read nor run",
        ]
        if self.dropout is None:
            lines.append("no modality dropout: the network will not have learned to do without a stream")
        else:
            last = self.dropout.rate_at((training.num_steps - 1) // per_epoch)
            lines.append(
                f"modality dropout {self.dropout.sampler}: rate {self.dropout.rate_at(0):g} in the first epoch,"
                f" {last:g} in the last"
            )
        lines.append(str(self.choice or self.model.treatment))
        if self.model.bn1.synchronised:
            lines.append("batch statistics are of all processes together; the stem keeps what it saves")
        elif self.group.world_size > 1:
            lines.append("batch statistics are each process's own; the main one's running statistics are kept")
        return tuple(lines)

    def components(self) -> tuple[Component, ...]:
        """The streams, what integrates them and the classifier, for the run's header."""
        streams = [list(stream_parameters(self.model, stream).values()) for stream in range(self.model.num_streams)]
        inside = {id(parameter) for parameters in streams for parameter in parameters}
        head = list(self.model.fc.parameters())
        inside |= {id(parameter) for parameter in head}
        rest = [parameter for parameter in self.model.parameters() if id(parameter) not in inside]
        parts = [*zip(STREAMS, streams, strict=True), ("integrated pathway", rest), ("classifier", head)]
        return tuple(_component(name, parameters) for name, parameters in parts)

    def workload(self) -> Workload:
        """One training step on one batch, to be measured."""
        with closing(self.batches().iterate(0)) as batches:
            batch = next(batches)[0].to(self.group.device)
        return training_step(self.model, self.phases[0], batch)


def check_streams(config: LinetConfig) -> None:
    """Hold the network to the streams that the data have.

    Raises:
        ConfigError: They are others.
    """
    if tuple(config.system.stream_channels) != CHANNELS:
        raise ConfigError(
            f"the data's streams are {' and '.join(STREAMS)} with {CHANNELS} channels, the network's have"
            f" {tuple(config.system.stream_channels)}",
            do="leave out --system.stream-channels; networks with other streams train with LINet.fit",
        )


def network_loss(model: LINet, batch: Batch) -> Loss:
    """Mean cross-entropy of a batch, in nats, and its accuracy."""
    logits = model(batch.streams, batch.availability)
    accuracy = (logits.detach().argmax(1) == batch.labels).float().mean()
    return Loss(classification_loss(logits, batch.labels), {"accuracy": accuracy})


def network_phase(model: LINet, loss: Callable[[Batch], Loss], training: TrainingConfig, device: torch.device) -> Phase:
    """The one phase; its AdamW decays weights, but not what normalises."""
    rate, decay = training.learning_rate, training.weight_decay
    groups = parameter_groups(
        model, stream_lrs=rate, stream_weight_decays=decay, shared_lr=rate, shared_weight_decay=decay
    )
    schedule = (
        constant(training.warmup_steps)
        if training.schedule == "constant"
        else cosine(training.warmup_steps, training.num_steps)
    )
    return Phase(
        "network",
        loss,
        _num_samples,
        (torch.optim.AdamW(groups),),
        schedule=schedule,
        device=device,
        clip_norm=training.clip_norm,
        precision=training.precision,
    )


def training_step(model: LINet, phase: Phase, batch: Batch) -> Workload:
    """One step on a batch."""
    step = bare_step([phase], [batch])
    return Workload(step=step, model=model, optimizers=phase.optimizers, inputs=[*batch.streams, batch.labels])


def _num_samples(batch: Batch) -> float:
    return float(len(batch))


def _component(name: str, parameters: list[nn.Parameter]) -> Component:
    return Component(
        name=name,
        num_parameters=sum(parameter.numel() for parameter in parameters),
        num_trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        mode="train",
    )
