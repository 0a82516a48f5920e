"""semcom as a system: what trains, on what, from which configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from frostline.config import TrainingConfig
from frostline.errors import ConfigError
from frostline.memory import Workload
from frostline.ops import FeatureCache, cache_key, checkpoint_
from frostline.records import Component
from frostline.regions import trainable_parameters
from frostline.scenes import Split
from frostline.systems.semcom.backbone import component, load_backbone
from frostline.systems.semcom.config import SemcomConfig
from frostline.systems.semcom.data import Batch, Collate, SemcomDataset, Source, open_source
from frostline.systems.semcom.model import SemcomModel
from frostline.training import BatchStream, Group, Loss, Phase, Sample, constant, cosine
from frostline.units import format_bytes

_TRAIN, _TEST = 0, 1  # first word of the channels' seeds
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_FILL_BATCH = 64

Progress = Callable[[int, int], None]
"""Told how many pictures of how many are done."""


class SemcomSystem:
    """A codec trained inside a frozen Florence-2.

    Args:
        config: The whole configuration.
        group: This process among the others; its device is used.
        directory: The run's own, for a feature cache on disk.
        compression: Your own module instead of the configured codec; see `SemcomModel`.
        decompression: Its counterpart.

    Attributes:
        model: Transmitter, channel and receiver.
        phases: One, ``codec``; none when there is no codec to train.

    Raises:
        ConfigError: A model, a file or a value that cannot be used.
        DataError: Pictures or captions that cannot be used.
    """

    name = "semcom"

    def __init__(
        self,
        config: SemcomConfig,
        group: Group,
        *,
        directory: Path | None = None,
        compression: nn.Module | None = None,
        decompression: nn.Module | None = None,
    ) -> None:
        if config.system.snr_min_db > config.system.snr_max_db:
            raise ConfigError(
                f"no SNR lies between {config.system.snr_min_db} and {config.system.snr_max_db} dB",
                where="--system.snr-min-db, --system.snr-max-db",
            )
        if (config.memory.frozen_dtype, config.training.precision) == ("bfloat16", "16-mixed"):
            raise ConfigError(
                "bfloat16 weights cannot run under float16 autocast",
                where="--memory.frozen-dtype, --training.precision",
                do="take --training.precision bf16-mixed, or 32-true for a codec in full precision",
            )
        self.config, self.group = config, group
        self.backbone = load_backbone(
            config.system.model, dtype=_DTYPES[config.memory.frozen_dtype], device=group.device
        )
        self._directory = directory
        torch.manual_seed(config.training.seed)
        self.model = SemcomModel(
            self.backbone,
            config.system,
            config.memory,
            image_size=self.backbone.image_size,
            compression=compression,
            decompression=decompression,
        ).to(group.device)
        self.source = self.open_source("train")
        self.cache = self._new_cache()
        if config.memory.recomputes_all:
            checkpoint_(self.model.receiver.language_model, ["encoder.layers.*", "decoder.layers.*"])
        self.phases: tuple[Phase, ...] = ()
        if trainable_parameters(self.model):
            self.phases = (codec_phase(self.model, self.model.loss, config.training, group.device),)

    def batches(self) -> BatchStream[Batch]:
        """Training batches, with cached features where the configuration asks for a cache."""
        return self._stream(self.cache)

    def test_batches(self) -> Iterator[Batch]:
        """Every sample of the first `data.num_test` test pictures once, one picture's samples together."""
        source = self.test_source
        tested = (row for row in range(source.num_samples) if source.picture_of(row) < self.config.data.num_test)
        rows = sorted(tested, key=source.picture_of)
        dataset = self._dataset(source, (_TEST, 0), None)
        collate = Collate(self.backbone.require_processor().tokenizer, self.backbone.max_answer_tokens)
        for start in range(0, len(rows), _FILL_BATCH):
            samples = [Sample(row, 0) for row in rows[start : start + _FILL_BATCH]]
            yield collate(dataset.__getitems__(samples)).to(self.group.device)

    @cached_property
    def test_source(self) -> Source:
        """The pictures and answers of the test split; reading a large annotation file once is enough."""
        return self.open_source("test")

    def open_source(self, split: Split) -> Source:
        """The pictures and answers of a split."""
        return open_source(self.config.data, self.backbone, split=split, seed=self.config.training.seed)

    def fill_cache(self, progress: Progress) -> None:
        """Fill the feature cache, if one was asked for.

        A cache on disk is shared: the main process makes the file, and each fills its part. In memory each process
        fills its own.
        """
        if self.cache is None:
            return
        world_size = self.group.world_size if self.config.memory.feature_cache == "disk" else 1
        if world_size > 1:
            self.group.barrier()
            if self.group.is_main:
                self.features(range(1))
            self.group.barrier()
        num_pictures = self.source.num_pictures
        blocks = range(0, num_pictures, _FILL_BATCH)
        for start in blocks[self.group.rank % world_size :: world_size]:
            pictures = range(start, min(start + _FILL_BATCH, num_pictures))
            self.features(pictures)
            progress(min(start + world_size * _FILL_BATCH, num_pictures), num_pictures)
        if world_size > 1:
            self.group.barrier()

    def release_upstream_(self) -> None:
        """Let go of the frozen part before the codec, if every feature that training will ask for is cached."""
        if self.cache is not None:
            self.model.transmitter.release_()
            self.backbone.model.model.vision_tower = None

    def notes(self) -> tuple[str, ...]:
        """What a reader of the run should know."""
        system, (num_tokens, dim) = self.config.system, self.model.shape
        num_symbols, ratio = self.model.num_symbols(), self.model.bandwidth_ratio()
        snr = "" if system.channel == "noiseless" else f", Es/N0 {system.snr_min_db:g} to {system.snr_max_db:g} dB"
        lines = [
            f"cut behind {system.mode}: {num_tokens} tokens of {dim}",
            f"{system.channel} channel{snr}: {num_symbols} complex uses a picture, k/n = {ratio:.4f}",
            "frozen before the codec: under no_grad as insurance, which saves 0 bytes (freezing did); behind it: never",
        ]
        if self.cache is not None:
            place = "on disk" if self.config.memory.feature_cache == "disk" else "in host memory"
            size = format_bytes(self.cache.nbytes)
            lines.append(f"feature cache: {self.source.num_pictures} pictures, {size} {place}")
        if self.config.training.warmup_steps >= self.config.training.num_steps:
            lines.append("the warm-up is as long as the run: its learning rate never reaches the peak")
        if not self.phases:
            lines.append("no codec, 0 trainable parameters: the frozen model is only monitored")
        return tuple(lines)

    def features(self, pictures: range) -> Tensor:
        """Features (P, N, D) of training pictures, from the cache where there is one."""

        def compute(positions: Tensor) -> Tensor:
            pixels = self.source.pixels([pictures[position] for position in positions.tolist()])
            return self.model.transmitter.features(pixels.to(self.group.device))

        if self.cache is None:
            return compute(torch.arange(len(pictures)))
        return self.cache.fetch(torch.tensor(pictures), compute)

    def components(self) -> tuple[Component, ...]:
        """The nine frozen components and the codec, for the run's header."""
        halves = (
            ("compression", self.model.transmitter.compression),
            ("decompression", self.model.receiver.decompression),
        )
        return self.backbone.components() + tuple(component(name, half, "") for name, half in halves if half)

    def workload(self) -> Workload:
        """One training step on one batch, to be measured; needs the tower, and no filled cache."""
        phase = self.phases[0]
        stream = self._stream(None)
        with closing(stream.iterate(0)) as batches:
            batch = next(batches)[0].to(self.group.device)
        if self.cache is not None:
            batch = replace(batch, features=self.model.features_of(batch), pixels=None)

        def step() -> Tensor:
            with phase.autocast():
                loss = self.model.loss(batch)
            loss.total.backward()
            for optimizer in phase.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            return loss.total.detach()

        tensors = [batch.labels, batch.snr_db, batch.pixels if batch.features is None else batch.features]
        return Workload(step=step, model=self.model, optimizers=phase.optimizers, inputs=tensors)

    def _stream(self, cache: FeatureCache | None) -> BatchStream[Batch]:
        training = self.config.training
        return BatchStream(
            self._dataset(self.source, (_TRAIN, training.seed), cache),
            Collate(self.backbone.require_processor().tokenizer, self.backbone.max_answer_tokens),
            data=self.config.data,
            batch_size=training.batch_size,
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            seed=training.seed,
            group=self.group,
        )

    def _dataset(self, source: Source, seed: tuple[int, ...], cache: FeatureCache | None) -> SemcomDataset:
        system = self.config.system
        return SemcomDataset(source, snr_range_db=(system.snr_min_db, system.snr_max_db), seed=seed, cache=cache)

    def _new_cache(self) -> FeatureCache | None:
        memory = self.config.memory
        if memory.feature_cache == "none":
            return None
        frozen = [part for part in (self.model.transmitter.tower, self.model.transmitter.projector) if part]
        preprocessing = repr(self.backbone.require_processor().image_processor)
        key = cache_key(*frozen, preprocessing, self.source.identity)
        path = None
        if memory.feature_cache == "disk":
            folder = Path(memory.feature_cache_directory).expanduser() if memory.feature_cache_directory else None
            folder = folder or self._directory
            if folder is None:
                raise ConfigError("a feature cache on disk has no place", do="give --memory.feature-cache-directory")
            path = folder / f"features-{key[:12]}.safetensors"
        return FeatureCache(self.source.num_pictures, self.model.shape, dtype=torch.float32, key=key, path=path)


def codec_phase(
    model: SemcomModel, loss: Callable[[Batch], Loss], training: TrainingConfig, device: torch.device
) -> Phase:
    """The one phase of a codec, whatever it is trained for; its AdamW holds exactly the codec."""
    optimizer = torch.optim.AdamW(
        trainable_parameters(model).values(), lr=training.learning_rate, weight_decay=training.weight_decay
    )
    schedule = (
        constant(training.warmup_steps)
        if training.schedule == "constant"
        else cosine(training.warmup_steps, training.num_steps)
    )
    return Phase(
        "codec",
        loss,
        _num_target_tokens,
        (optimizer,),
        schedule=schedule,
        device=device,
        clip_norm=training.clip_norm,
        precision=training.precision,
    )


def _num_target_tokens(batch: Batch) -> float:
    return float(batch.num_target_tokens)
