"""semcom as a system: what trains, on what, from which configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from frostline.systems.semcom.backbone import load_backbone
from frostline.systems.semcom.config import SemcomConfig
from frostline.systems.semcom.data import Batch, Collate, SemcomDataset, Source, open_source
from frostline.systems.semcom.model import SemcomModel
from frostline.training import BatchStream, Group, Loss, Phase, Sample, constant, cosine
from frostline.units import format_bytes

_TEST_SEED = 20_240  # one channel for all methods, other than any training run's
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
        if config.memory.checkpoint == "all":
            checkpoint_(self.model.receiver.language_model, ["encoder.layers.*", "decoder.layers.*"])
        self.phases: tuple[Phase, ...] = ()
        if trainable_parameters(self.model):
            self.phases = (codec_phase(self.model, self.model.loss, config.training, group.device),)

    def batches(self) -> BatchStream[Batch]:
        """Training batches, with cached features where the configuration asks for a cache."""
        training = self.config.training
        return BatchStream(
            self._dataset(self.source, training.seed, self.cache),
            Collate(self.backbone.require_processor().tokenizer),
            data=self.config.data,
            batch_size=training.batch_size,
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            seed=training.seed,
            group=self.group,
        )

    def test_batches(self) -> Iterator[Batch]:
        """Every test sample once, in order."""
        source = self.open_source("test")
        num_samples = min(source.num_samples, self.config.data.num_test)
        dataset = self._dataset(source, _TEST_SEED, None)
        collate = Collate(self.backbone.require_processor().tokenizer)
        for start in range(0, num_samples, _FILL_BATCH):
            rows = range(start, min(start + _FILL_BATCH, num_samples))
            yield collate(dataset.__getitems__([Sample(row, 0) for row in rows])).to(self.group.device)

    def open_source(self, split: Split) -> Source:
        """The pictures and answers of a split."""
        return open_source(self.config.data, self.backbone, split=split, seed=self.config.training.seed)

    def fill_cache(self, progress: Progress) -> None:
        """Fill the feature cache, if one was asked for.

        With a cache on disk the main process fills it and the others wait; in memory each fills its own.
        """
        if self.cache is None:
            return
        shared = self.config.memory.feature_cache == "disk"
        if shared and not self.group.is_main:
            self.group.barrier()
        num_pictures = self.source.num_pictures
        for start in range(0, num_pictures, _FILL_BATCH):
            pictures = range(start, min(start + _FILL_BATCH, num_pictures))
            self.features(pictures)
            progress(pictures.stop, num_pictures)
        if shared and self.group.is_main:
            self.group.barrier()

    def release_upstream_(self) -> None:
        """Let go of the frozen part before the codec, if every feature that training will ask for is cached."""
        if self.cache is not None:
            self.model.transmitter.release_()
            self.backbone.model.model.vision_tower = None

    def notes(self) -> tuple[str, ...]:
        """What a reader of the run should know."""
        system, (num_tokens, dim) = self.config.system, self.model.shape
        num_symbols = self.model.num_symbols()
        ratio = num_symbols / self.model.num_source_values
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
        trainable = trainable_parameters(self.model)
        halves = (("compression", self.model.transmitter), ("decompression", self.model.receiver))
        codec = tuple(
            Component(
                name=name,
                num_parameters=sum(p.numel() for key, p in trainable.items() if f".{name}." in key),
                num_trainable=sum(p.numel() for key, p in trainable.items() if f".{name}." in key),
                mode="train" if half.training else "eval",
                note="trains",
            )
            for name, half in halves
            if self.phases
        )
        return self.backbone.components() + codec

    def workload(self) -> Workload:
        """One training step on one batch, to be measured."""
        batch = next(iter(self.batches().iterate(0)))[0].to(self.group.device)
        optimizers = self.phases[0].optimizers

        def step() -> None:
            with self.phases[0].autocast():
                loss = self.model.loss(batch)
            loss.total.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        tensors = [batch.labels, batch.snr_db, batch.pixels if batch.features is None else batch.features]
        return Workload(step=step, model=self.model, optimizers=optimizers, inputs=tensors)

    def _dataset(self, source: Source, seed: int, cache: FeatureCache | None) -> SemcomDataset:
        system = self.config.system
        return SemcomDataset(source, snr_range_db=(system.snr_min_db, system.snr_max_db), seed=seed, cache=cache)

    def _new_cache(self) -> FeatureCache | None:
        memory = self.config.memory
        if memory.feature_cache == "none":
            return None
        path = None
        if memory.feature_cache == "disk":
            folder = Path(memory.feature_cache_directory) if memory.feature_cache_directory else self._directory
            if folder is None:
                raise ConfigError(
                    "a feature cache on disk has no place",
                    do="give --memory.feature-cache-directory or --out",
                )
            path = folder / "features.safetensors"
        frozen = [part for part in (self.model.transmitter.tower, self.model.transmitter.projector) if part]
        preprocessing = repr(self.backbone.require_processor().image_processor)
        return FeatureCache(
            self.source.num_pictures,
            self.model.shape,
            dtype=torch.float32,
            key=cache_key(*frozen, preprocessing, self.source.identity),
            path=path,
        )


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
