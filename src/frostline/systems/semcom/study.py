"""Evaluate a semcom system: the trained codec beside the methods a reader would ask for."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from statistics import fmean

import torch

from frostline.errors import import_extra
from frostline.records import Curve, EvaluationReport
from frostline.systems.semcom.data import Batch
from frostline.systems.semcom.evaluation import (
    EXACT,
    Method,
    PrincipalComponents,
    raw_features,
    send_the_answer,
    sweep,
)
from frostline.systems.semcom.model import SemcomModel
from frostline.systems.semcom.objectives import FeatureLoss, PublishedLoss
from frostline.systems.semcom.system import SemcomSystem, codec_phase
from frostline.training import Loss, run_step

CODEC = "trained codec"
_MAX_PCA_PICTURES = 1024
_CORPUS_SNR_DB = 10.0
_WINDOW = 10

Objective = Callable[[Batch], Loss]


def evaluate(system: SemcomSystem, *, baselines: bool, note: Callable[[str], None]) -> EvaluationReport:
    """Score a system over SNR.

    Args:
        system: With its codec's weights loaded.
        baselines: Also train the two codecs that learn something else, which takes minutes.
        note: Told what is going on.

    Returns:
        Curves over SNR, bandwidths and, for captions of photographs, corpus scores.
    """
    model, channel = system.model, system.model.channel
    num_raw = model.shape[0] * model.shape[1] // 2
    source_values = model.num_source_values
    num_symbols = model.num_symbols()
    bandwidth = _bandwidth(num_symbols, source_values)
    ratio = f" ({num_raw / num_symbols:.0f}x the bandwidth)" if system.phases else ""
    methods = [
        Method(
            f"raw features{ratio}",
            raw_features(channel),
            f"{_bandwidth(num_raw, source_values)}, knows each amplitude",
        )
    ]
    if system.phases:
        methods.insert(0, Method(CODEC, model, bandwidth))
        note("fitting PCA")
        features = system.features(range(min(_MAX_PCA_PICTURES, system.source.num_pictures)))
        per_token = system.config.system.symbols_per_token
        pca = PrincipalComponents(features.to(system.group.device), per_token, channel)
        methods.append(Method("PCA + Wiener filter", pca, f"{bandwidth}, knows each amplitude"))
        if baselines:
            methods += _trained_baselines(system, bandwidth, note)
    note(f"testing {len(methods)} methods")
    batches = list(system.test_batches())
    curves = sweep(model, batches, methods)
    if system.phases and system.config.data.kind == "scenes" and system.config.data.task == "caption":
        curves += (send_the_answer(model.num_symbols(), channel.kind),)
    asked = "answers" if system.config.data.task == "both" else f"{system.config.data.task}s"
    pictures = "unseen scenes" if system.config.data.kind == "scenes" else "photographs"
    num_test = sum(len(batch.tasks) for batch in batches)
    facts = {
        "num_test": float(num_test),
        "image_values": float(source_values),
        "raw_channel_uses": float(num_raw),
    }
    if system.phases:
        facts |= {"channel_uses": float(num_symbols), "bandwidth_ratio": num_symbols / source_values}
    if system.config.data.kind == "coco":
        facts |= _corpus_scores(system, batches)
    return EvaluationReport(
        system="semcom",
        title=f"{num_test:,} {asked} of {pictures}, {channel.kind} channel, {bandwidth}",
        x_name="Es/N0 in dB",
        curves=curves,
        facts=facts,
    )


def _trained_baselines(system: SemcomSystem, bandwidth: str, note: Callable[[str], None]) -> list[Method]:
    """Codecs of the same size, trained for as many steps, for something else than the answer."""
    note("training the feature-MSE codec")
    mse, fall = _train(system, FeatureLoss)
    note("training by the published recipe")
    published, published_fall = _train(system, PublishedLoss)
    return [
        Method("feature-MSE codec", mse, f"{bandwidth}, trained without the receiver, loss {fall}"),
        Method("published recipe", published, f"{bandwidth}, receiver under no_grad, loss {published_fall}"),
    ]


def _train(system: SemcomSystem, objective: Callable[[SemcomModel], Objective]) -> tuple[SemcomModel, str]:
    """A codec trained for something else, and how far its loss fell."""
    config = system.config
    torch.manual_seed(config.training.seed)
    model = SemcomModel(system.backbone, config.system, config.memory, image_size=system.backbone.image_size).to(
        system.group.device
    )
    phase = codec_phase(model, objective(model), config.training, system.group.device)
    losses = [
        run_step(phase, micro_batches, system.group).loss
        for micro_batches in islice(system.batches().iterate(0), config.training.num_steps)
    ]
    return model, f"{fmean(losses[:_WINDOW]):.3f} -> {fmean(losses[-_WINDOW:]):.3f}"


@torch.no_grad()
def _corpus_scores(system: SemcomSystem, batches: list[Batch]) -> dict[str, float]:
    """BLEU and chrF of generated captions against the references, through the channel at 10 dB."""
    sacrebleu = import_extra("sacrebleu", extra="metrics")
    said: list[str] = []
    meant: list[str] = []
    for batch in batches:
        snr_db = torch.full_like(batch.snr_db, _CORPUS_SNR_DB)
        rebuilt = system.model(system.model.features_of(batch), snr_db, batch.noise_seeds)
        said += system.model.receiver.generate(rebuilt, batch.tasks)
        meant += batch.answers
    return {
        "bleu_at_10_db": float(sacrebleu.corpus_bleu(said, [meant]).score),
        "chrf_at_10_db": float(sacrebleu.corpus_chrf(said, [meant]).score),
    }


def curve_of(report: EvaluationReport, name: str = CODEC, y_name: str = EXACT) -> Curve:
    """One curve of a report by its names."""
    return next(curve for curve in report.curves if (curve.name, curve.y_name) == (name, y_name))


def _bandwidth(num_symbols: int, source_values: int) -> str:
    return f"{num_symbols} uses, k/n = {num_symbols / source_values:.4f}"
