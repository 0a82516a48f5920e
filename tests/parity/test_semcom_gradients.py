"""The codec's gradients are those of the step as people write it, whatever is traded for memory."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from frostline.ops import checkpoint_
from frostline.proof import Gradients, compare_gradients, gradients_of, prove_step
from frostline.records import ProofReport
from frostline.regions import load_trainable_state_, trainable_parameters, trainable_state
from frostline.systems.semcom.data import Batch
from frostline.systems.semcom.objectives import PublishedLoss
from frostline.systems.semcom.reference import plain_loss
from frostline.training import run_step
from semcom_parts import PLAIN, nano, odd, scene_batch, small_model, small_system

LAYERS = ["encoder.layers.*", "decoder.layers.*"]
MODELS = {"nano": (nano, 64), "odd": (odd, 96)}


def stepped(loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A step of forward and backward."""

    def step() -> Tensor:
        total = loss()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    return step


def batch_of(name: str, dtype: torch.dtype = torch.float32) -> Batch:
    batch = scene_batch(6)
    size = MODELS[name][1]
    generator = torch.Generator().manual_seed(0)
    pixels = batch.pixels if name == "nano" else torch.randn(6, 3, size, size, generator=generator)
    assert pixels is not None
    return replace(batch, pixels=pixels.to(dtype))


def in_float64(name: str, **system: object) -> Callable[[], Gradients]:
    """The same step in double precision, by frostline: transformers computes even a double model's loss in float32."""

    def gradients() -> Gradients:
        build, size = MODELS[name]
        twin = small_model(build(torch.float64), image_size=size, **system).double()
        twin.loss(batch_of(name, torch.float64)).total.backward()
        return gradients_of(twin)

    return gradients


def proof(
    name: str = "nano",
    *,
    checkpoint: bool = False,
    cached: bool = False,
    memory: dict[str, int] | None = None,
    **system: object,
) -> ProofReport:
    """frostline's step against the plain one."""
    build, size = MODELS[name]
    backbone, batch = build(), batch_of(name)
    model = small_model(backbone, replace(PLAIN, **(memory or {})), image_size=size, **system)
    treated = batch
    if cached:
        treated = replace(batch, pixels=None, features=model.transmitter.features(batch.pixels))
    with ExitStack() as stack:
        if checkpoint:
            stack.callback(checkpoint_(model.receiver.language_model, LAYERS).remove)
        ours = stepped(lambda: model.loss(treated).total)
        plain = stepped(lambda: plain_loss(model, backbone.model, batch))
        report = prove_step(plain, ours, model, reference=in_float64(name, **system))
    arrived = [difference.name for difference in report.per_parameter]
    assert arrived == list(trainable_parameters(model))
    return report


@pytest.mark.parametrize("channel", ["awgn", "rayleigh", "noiseless"])
@pytest.mark.parametrize("codec", ["adaptive", "linear"])
def test_without_savings_the_step_is_the_plain_one(codec, channel):
    report = proof(codec=codec, channel=channel)
    assert (report.proof_class, report.loss_difference) == ("EXACT", 0.0)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_checkpointing_and_cached_features_change_no_bit(name, checkpoint, cached):
    report = proof(name, checkpoint=checkpoint, cached=cached)
    assert (report.proof_class, report.loss_difference) == ("EXACT", 0.0)


def test_no_grad_before_the_codec_changes_no_bit():
    model, batch = small_model(), batch_of("nano")
    florence = nano().model
    plain = stepped(lambda: plain_loss(model, florence, batch))
    advised = stepped(lambda: plain_loss(model, florence, batch, tower_no_grad=True))
    assert prove_step(plain, advised, model).proof_class == "EXACT"


@pytest.mark.parametrize(
    "memory",
    [{"loss_chunk_tokens": 7}, {"loss_chunk_tokens": 64}, {"upstream_chunk": 1}, {"upstream_chunk": 4}],
    ids=str,
)
@pytest.mark.parametrize("name", MODELS)
def test_chunks_are_the_same_sums_in_another_order(name, memory):
    report = proof(name, memory=memory, checkpoint=True)
    assert report.proof_class in ("EXACT", "ROUNDING"), report
    assert report.worst.max_relative <= 1e-5
    assert report.worst.cosine == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("memory", [{"loss_chunk_tokens": 7}, {"upstream_chunk": 1}], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_in_float64_nothing_but_rounding_is_left(name, memory):
    build, size = MODELS[name]
    parts = small_model(build(torch.float64), replace(PLAIN, **memory), image_size=size).double()
    parts.loss(batch_of(name, torch.float64)).total.backward()
    report = compare_gradients(in_float64(name)(), gradients_of(parts))
    assert 0 < report.worst.max_relative <= 1e-12


@pytest.mark.parametrize("precision", ["bf16-mixed"])
def test_autocast_does_not_cut_the_gradient(precision):
    model, batch = small_model(), batch_of("nano")
    step = stepped(lambda: model.loss(batch).total)

    def autocast() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(batch).total
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    report = prove_step(step, autocast, model)
    assert all(difference.cosine > 0.99 for difference in report.per_parameter)


@pytest.mark.parametrize("no_grad", [True, False])
def test_the_frozen_receiver_under_no_grad_would_be_seen(no_grad):
    """The published advice: these proofs can fail."""
    model, batch, florence = small_model(), batch_of("nano"), nano().model
    plain = stepped(lambda: plain_loss(model, florence, batch))
    published = PublishedLoss(model)

    def advised() -> Tensor:
        if no_grad:
            return plain_loss(model, florence, batch, receiver_no_grad=True)
        return stepped(lambda: published(batch).total)()

    report = prove_step(plain, advised, model)
    assert report.proof_class == "BOUNDED"
    starved = {d.name for d in report.per_parameter if d.max_relative == float("inf")}
    decoder = {name for name in trainable_parameters(model) if "decompression" in name}
    assert decoder <= starved


@pytest.mark.parametrize("feature_cache", ["none", "memory", "disk"])
def test_a_step_of_the_configured_system_is_the_plain_step(feature_cache, tmp_path):
    memory = replace(PLAIN, checkpoint="all", feature_cache=feature_cache, feature_cache_directory=str(tmp_path))
    system = small_system(memory, num_scenes=8)
    system.fill_cache(lambda done, total: None)
    system.release_upstream_()
    (batch,) = next(system.batches().iterate(0))
    model, whole = system.model, nano()
    assert (batch.features is None) == (feature_cache == "none")

    plain_batch = batch
    if feature_cache != "none":
        (plain_batch,) = next(small_system(PLAIN, num_scenes=8).batches().iterate(0))
    plain = stepped(lambda: plain_loss(model, whole.model, plain_batch))
    report = prove_step(plain, stepped(lambda: model.loss(batch).total), model)
    assert report.worst.max_relative <= (0.0 if feature_cache == "none" else 1e-5)


def test_a_training_step_moves_the_codec_as_plain_adamw_does():
    system, batch = small_system(batch_size=6), batch_of("nano")
    model = system.model
    twin = small_model()
    load_trainable_state_(twin, trainable_state(model))
    phase = system.phases[0]
    run_step(phase, (batch,), system.group)
    optimizer = torch.optim.AdamW(
        trainable_parameters(twin).values(), lr=phase.optimizers[0].param_groups[0]["lr"], weight_decay=1e-4
    )
    plain_loss(twin, nano().model, batch).backward()
    optimizer.step()
    ours, plain = trainable_parameters(model), trainable_parameters(twin)
    assert ours.keys() == plain.keys()
    assert all(torch.equal(ours[name], plain[name]) for name in ours)
