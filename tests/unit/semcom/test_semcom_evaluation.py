import math

import pytest
import torch

from frostline.systems.semcom.channel import Channel
from frostline.systems.semcom.evaluation import (
    EXACT,
    SNRS_DB,
    TOKENS,
    Method,
    PrincipalComponents,
    raw_features,
    send_the_answer,
    sweep,
)
from semcom_parts import scene_batch, small_model


@pytest.fixture(scope="module")
def model():
    return small_model(codec="none")


@pytest.fixture(scope="module")
def batch():
    return scene_batch(40)


def test_a_sweep_scores_every_method_at_every_snr(model, batch):
    methods = [
        Method("perfect", lambda features, snr_db, seeds: features, "no channel"),
        Method("raw", raw_features(Channel("awgn")), "raw"),
        Method("nothing", lambda features, snr_db, seeds: features * 0, "cut"),
    ]
    whole = sweep(model, [batch], methods)
    assert [(curve.name, curve.y_name) for curve in whole] == [
        (name, kind) for kind in (EXACT, TOKENS) for name in ("perfect", "raw", "nothing")
    ]
    perfect, raw, nothing = whole[:3]
    assert all(curve.x == SNRS_DB and curve.note for curve in whole)
    assert min(perfect.y) == max(perfect.y) >= 0.95
    assert raw.y[0] < 0.5 < 0.9 < raw.y[-1]
    assert max(nothing.y) < 0.1
    assert all(token >= exact for exact, token in zip(raw.y, whole[4].y, strict=True))


def test_all_principal_components_are_the_features_and_few_are_the_best_few(model, batch):
    features = model.features_of(batch)
    error = {}
    for symbols in (1, 8, 64):
        pca = PrincipalComponents([features], symbols, Channel("noiseless"))
        rebuilt = pca(features, batch.snr_db, batch.noise_seeds)
        error[symbols] = (rebuilt - features).square().sum().item()
    tokens = features.flatten(0, 1)
    singular = torch.linalg.svdvals(tokens - tokens.mean(0))
    for symbols in (1, 8):  # Eckart and Young: what is left is what was not sent
        assert error[symbols] == pytest.approx(singular[2 * symbols :].square().sum().item(), rel=1e-3)
    assert error[64] < 1e-6 * singular.square().sum()


def test_the_wiener_filter_beats_none(model, batch):
    features, snr_db = model.features_of(batch), torch.zeros(40)
    pca = PrincipalComponents([features], 4, Channel("awgn"))
    filtered = (pca(features, snr_db, batch.noise_seeds) - features).square().mean()
    pca._variance = torch.full_like(pca._variance, 1e12)  # never shrinks
    assert filtered < (pca(features, snr_db, batch.noise_seeds) - features).square().mean()


def test_sending_the_answer_is_bounded_by_capacity():
    bits = math.log2(18_432)
    awgn = send_the_answer(64, "awgn")
    capacity = [64 * math.log2(1 + 10 ** (snr_db / 10)) for snr_db in SNRS_DB]
    assert awgn.y == tuple(float(c >= bits) for c in capacity)
    assert send_the_answer(8, "awgn").y[0] == 0.0
    assert set(send_the_answer(8, "noiseless").y) == {1.0}
    fading = send_the_answer(16, "rayleigh").y
    gains = torch.distributions.Exponential(1.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        power = gains.sample((200_000,))
    for snr_db, share in zip(SNRS_DB, fading, strict=True):
        enough = 16 * torch.log2(1 + power * 10 ** (snr_db / 10)) >= bits
        assert enough.double().mean().item() == pytest.approx(share, abs=0.005)
