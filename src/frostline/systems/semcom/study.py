"""Evaluate a semcom system: the trained codec beside the methods a reader would ask for."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from statistics import fmean

import torch

from frostline.errors import import_extra
from frostline.records import EvaluationReport
from frostline.systems.semcom.data import Batch
from frostline.systems.semcom.evaluation import (
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
_BLOCK = 64

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
    model, channel, data = system.model, system.model.channel, system.config.data
    if data.kind == "coco":
        import_extra("sacrebleu", extra="metrics")
    num_raw = model.shape[0] * model.shape[1] // 2
    source_values = model.num_source_values
    num_symbols = model.num_symbols()
    bandwidth = _bandwidth(num_symbols, source_values)
    ratio = f" ({num_raw / num_symbols:.0f}x the bandwidth)" if system.phases else ""
    raw_note = f"{_bandwidth(num_raw, source_values)}, knows each amplitude"
    methods = [Method(f"raw features{ratio}", raw_features(channel), raw_note)]
    if system.phases:
        methods = [Method(CODEC, model, bandwidth), *methods, _principal_components(system, num_symbols, note)]
        if baselines:
            methods += _trained_baselines(system, note)
    note(f"testing {len(methods)} methods")
    curves = sweep(model, system.test_batches(), methods)
    if system.phases and (data.kind, data.task) == ("scenes", "caption"):
        curves += (send_the_answer(num_symbols, channel.kind),)
    facts = {
        "num_test_pictures": float(min(data.num_test, system.test_source.num_pictures)),
        "image_values": float(source_values),
        "raw_channel_uses": float(num_raw),
    }
    if system.phases:
        facts |= {"channel_uses": float(num_symbols), "bandwidth_ratio": model.bandwidth_ratio()}
    if data.kind == "coco":
        note("writing captions")
        facts |= _corpus_scores(system)
    return EvaluationReport(
        system="semcom",
        title=f"{_tested(system, int(facts['num_test_pictures']))}, {channel.kind} channel, {bandwidth}",
        x_name="Es/N0 in dB",
        curves=curves,
        facts=facts,
    )


def _tested(system: SemcomSystem, num_pictures: int) -> str:
    data = system.config.data
    asked = "Captions and detections" if data.task == "both" else f"{data.task.capitalize()}s"
    if data.kind == "scenes":
        return f"{asked} of {num_pictures:,} unseen scenes"
    return f"{asked} of {num_pictures:,} {'test' if data.test_captions else 'training'} pictures"


def _principal_components(system: SemcomSystem, num_symbols: int, note: Callable[[str], None]) -> Method:
    note("fitting PCA")
    num_tokens, dim = system.model.shape
    per_token = min(max(1, num_symbols // num_tokens), dim // 2)
    num_pictures = min(_MAX_PCA_PICTURES, system.source.num_pictures)
    blocks = (range(start, min(start + _BLOCK, num_pictures)) for start in range(0, num_pictures, _BLOCK))
    pca = PrincipalComponents(
        (system.features(block).to(system.group.device) for block in blocks), per_token, system.model.channel
    )
    bandwidth = _bandwidth(per_token * num_tokens, system.model.num_source_values)
    return Method("PCA + Wiener filter", pca, f"{bandwidth}, knows each amplitude")


def _trained_baselines(system: SemcomSystem, note: Callable[[str], None]) -> list[Method]:
    """Codecs of the configured kind and size, trained for as many steps, for something else than the answer."""
    note("training the feature-MSE codec")
    mse, fall = _train(system, FeatureLoss)
    note("training by the published recipe")
    published, published_fall = _train(system, PublishedLoss)
    bandwidth = _bandwidth(mse.num_symbols(), mse.num_source_values)
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
def _corpus_scores(system: SemcomSystem) -> dict[str, float]:
    """BLEU and chrF at 10 dB: one caption a picture, against all that people wrote of it."""
    sacrebleu = import_extra("sacrebleu", extra="metrics")
    said: dict[int, str] = {}
    meant: dict[int, list[str]] = {}
    for batch in system.test_batches():
        new = {picture: row for row, picture in enumerate(batch.pictures) if picture not in said}
        if new:
            rebuilt = system.model(
                system.model.features_of(batch), torch.full_like(batch.snr_db, _CORPUS_SNR_DB), batch.noise_seeds
            )
            rows = list(new.values())
            written = system.model.receiver.generate(rebuilt[rows], [batch.tasks[row] for row in rows])
            said |= dict(zip(new, written, strict=True))
        for picture, answer in zip(batch.pictures, batch.answers, strict=True):
            meant.setdefault(picture, []).append(answer)
    most = max(map(len, meant.values()))
    streams = [[meant[picture][at] if at < len(meant[picture]) else None for picture in said] for at in range(most)]
    hypotheses = list(said.values())
    return {
        "bleu_at_10_db": float(sacrebleu.corpus_bleu(hypotheses, streams).score),
        "chrf_at_10_db": float(sacrebleu.corpus_chrf(hypotheses, streams).score),
    }


def _bandwidth(num_symbols: int, source_values: int) -> str:
    return f"{num_symbols} uses, k/n = {num_symbols / source_values:.4f}"
