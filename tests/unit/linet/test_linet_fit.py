"""`LINet.fit`, option by option."""

import copy
import json
import math
import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from frostline.errors import ConfigError, DataError
from frostline.systems.linet.batches import Batch
from frostline.systems.linet.groups import parameter_groups
from frostline.systems.linet.streams import frozen_streams, stream_state
from frostline.systems.linet.treatment import Treatment
from linet_parts import missing, samples, small_net

QUIET = {"verbose": False}


def loader(*sizes, streams=(3, 1), dtype=torch.float64, seed=0):
    """Batches of these sizes, the same in every epoch."""
    drawn = [samples(size, streams=streams, dtype=dtype, seed=seed + number) for number, size in enumerate(sizes)]
    return [(*images, labels) for images, labels in drawn]


def test_it_is_the_plain_loop_with_every_sample_counting_the_same():
    model = small_net()
    plain, batches = copy.deepcopy(model), loader(4, 4, 4, 4, 3)
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9) for net in (model, plain)]
    history = model.fit(batches, epochs=2, optimizer=optimizers[0], gradient_accumulation_steps=2, **QUIET)
    losses = []
    for _ in range(2):
        for window in (batches[:2], batches[2:4], batches[4:]):
            optimizers[1].zero_grad()
            total = sum(len(batch[-1]) for batch in window)
            for *images, labels in window:
                loss = F.cross_entropy(plain(images), labels)
                (loss * (len(labels) / total)).backward()
                losses.append((loss.item(), len(labels)))
            optimizers[1].step()
    for mine, other in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)
    first = losses[: len(losses) // 2]
    assert history.epochs[0].train_loss == pytest.approx(sum(x * n for x, n in first) / 19, rel=1e-6)
    assert history.column("num_steps") == [3, 3]


def test_validation_scores_are_means_over_samples():
    model, batches = small_net(), loader(6, 1, 3)
    history = model.fit(loader(4), batches, epochs=1, learning_rate=0.0, weight_decay=0.0, **QUIET)
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(images) for *images, _ in batches])
    labels = torch.cat([batch[-1] for batch in batches])
    assert history.epochs[0].val_loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-6)
    assert history.epochs[0].val_accuracy == float((logits.argmax(1) == labels).double().mean())
    scores = model.evaluate(batches)
    assert (scores.loss, scores.accuracy, scores.num_samples) == (
        history.epochs[0].val_loss, history.epochs[0].val_accuracy, 10)  # fmt: skip
    assert torch.equal(model.predict(batches), logits.argmax(1))
    assert torch.equal(model.predict([batch[:-1] for batch in batches]), logits.argmax(1)), "labels may be left out"
    torch.testing.assert_close(model.predict_proba(batches), logits.float().softmax(1))
    assert not model.training


def test_modality_dropout_ramps_and_never_reads_what_is_missing():
    torch.manual_seed(0)
    images, labels = samples(12)
    real = missing("10 11 11 11 11 11 11 11 11 11 11 01")
    images[1][0], images[0][11] = math.nan, math.inf
    model = small_net()
    history = model.fit(
        [(*images, real, labels)],
        epochs=4,
        learning_rate=1e-3,
        modality_dropout=True,
        modality_dropout_start=1,
        modality_dropout_ramp=2,
        modality_dropout_rate=0.9,
        **QUIET,
    )
    assert history.column("modality_dropout_rate") == [0.0, 0.45, 0.9, 0.9]
    assert history.epochs[0].missing_shares == (1 / 12, 1 / 12)
    assert sum(history.epochs[3].missing_shares) > 0.5
    assert all(math.isfinite(loss) for loss in history.column("train_loss"))
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


def test_the_originals_two_calls():
    model = small_net(torch.float32)
    batches = loader(6, 6, dtype=torch.float32)
    model.compile(optimizer=torch.optim.AdamW(model.parameters()), loss="focal", scheduler="cosine")
    history = model.fit(
        train_loader=batches, val_loader=batches, epochs=2, verbose=False, early_stopping=True, grad_clip_norm=1.0,
        modality_dropout=True, modality_dropout_rate=0.2, modality_dropout_ramp=20, stream_monitoring=True,
    )  # fmt: skip
    assert len(history.epochs) == 2 and history.stopped == ""
    assert json.loads(history.to_json())["epochs"][1]["streams"][0]["alone_val_accuracy"] is not None


def test_early_stopping_restores_the_best_weights(tmp_path):
    model, seen = small_net(), []
    history = model.fit(
        loader(6),
        loader(6, seed=5),
        epochs=9,
        learning_rate=0.3,
        early_stopping=True,
        patience=1,
        min_delta=1e9,
        save_path=tmp_path / "best.pt",
        callbacks=[lambda net, record: seen.append(copy.deepcopy(net.state_dict()))],
        **QUIET,
    )
    assert history.stopped == "val_loss has not been better for 2 epochs" and len(history.epochs) == 3
    assert (history.best_epoch, history.restored) == (0, True)
    saved = torch.load(tmp_path / "best.pt", weights_only=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, seen[0][name]) and torch.equal(saved[name], tensor)


@pytest.mark.parametrize("monitor", ["val_loss", "val_accuracy"])
def test_a_stream_that_stops_is_frozen_as_it_was_at_its_best(monitor):
    model, states = small_net(), []
    history = model.fit(
        loader(6, 6),
        loader(6, seed=5),
        epochs=9,
        learning_rate=0.05,
        monitor=monitor,
        stream_early_stopping=True,
        stream_patience=[0, 3],
        stream_min_delta=1e9,
        restore_best_weights=False,
        callbacks=[lambda net, record: states.append([stream_state(net, stream) for stream in range(2)])],
        **QUIET,
    )
    assert history.frozen_at == {0: 1, 1: 4} and history.restored_stream_epochs == {0: 0, 1: 0}
    assert history.stopped == "all streams are frozen" and len(history.epochs) == 5
    assert history.column("frozen", stream=0) == [False, True, True, True, True]
    assert frozen_streams(model) == (0, 1)
    for stream in range(2):
        final = stream_state(model, stream)
        assert len(final) > 20 and all(torch.equal(tensor, states[0][stream][name]) for name, tensor in final.items())
    assert not all(torch.equal(t, states[0][1][name]) for name, t in states[2][1].items()), "the other one trained on"


def test_restoring_the_best_network_leaves_frozen_streams_at_their_own_best():
    model, states = small_net(), []
    history = model.fit(
        loader(6, 6),
        loader(6, seed=5),
        epochs=4,
        learning_rate=0.05,
        stream_early_stopping=True,
        stream_patience=[0, 9],
        stream_min_delta=1e9,
        min_delta=-1e9,  # the last epoch is the best
        callbacks=[lambda net, record: states.append(copy.deepcopy(net.state_dict()))],
        **QUIET,
    )
    assert history.best_epoch == 3 and history.restored and history.frozen_at == {0: 1}
    assert torch.equal(model.fc.weight, states[3]["fc.weight"])
    assert all(torch.equal(t, states[0][name]) for name, t in stream_state(model, 0).items())


def test_monitoring_says_alone_and_without_and_means_it():
    model, batches = small_net(streams=(1, 1, 1)), loader(8, streams=(1, 1, 1))
    record = model.fit(batches, batches, epochs=1, learning_rate=0.0, stream_monitoring=True, **QUIET).epochs[0]
    for stream in record.streams:
        others = [other for other in range(3) if other != stream.stream]
        assert stream.alone_val_accuracy == model.evaluate(batches, streams=[stream.stream]).accuracy
        assert stream.alone_val_loss == model.evaluate(batches, blanked_streams=set(others)).loss
        assert stream.without_val_accuracy == model.evaluate(batches, blanked_streams={stream.stream}).accuracy
    two = small_net()
    record = two.fit(loader(8), loader(8), epochs=1, stream_monitoring=True, **QUIET).epochs[0]
    assert record.streams[0].without_val_accuracy == record.streams[1].alone_val_accuracy


def test_samples_without_the_only_stream_are_left_out_of_its_score():
    model = small_net()
    images, labels = samples(4)
    scores = model.evaluate([(*images, missing("11 01 10 11"), labels)], streams=[0])
    assert scores.num_samples == 3
    with pytest.raises(DataError, match="no sample to evaluate on"):
        model.evaluate([(*images, missing("01 01 01 01"), labels)], streams=[0])


def test_norms_snapshots_and_rates(tmp_path):
    model = small_net()
    groups = parameter_groups(model, stream_lrs=[1e-3, 2e-3], shared_lr=4e-3)
    history = model.fit(
        loader(6, 6),
        epochs=2,
        optimizer=torch.optim.AdamW(groups),
        scheduler="onecycle",
        gradient_monitoring=True,
        gradient_log_freq=1,
        track_integration_weights=True,
        integration_snapshot_path=tmp_path / "snapshots",
        integration_snapshot_freq=2,
        stream_balance_weight=0.1,
        **QUIET,
    )
    last = history.epochs[-1]
    assert last.learning_rates["stream 1"] == pytest.approx(2 * last.learning_rates["stream 0"])
    assert last.streams[1].learning_rate == last.learning_rates["stream 1"] == pytest.approx(2e-3 * 4e-6, rel=1e-3)
    assert last.balance_loss > 0
    assert all(stream.gradient_norm > 0 and stream.integration_norm > 0 for stream in last.streams)
    (file,) = (tmp_path / "snapshots").iterdir()
    weights = load_file(file)
    norm = math.sqrt(sum(float(t.square().sum()) for n, t in weights.items() if n.endswith("streams.0")))
    assert file.name == "epoch-0001.safetensors" and last.streams[0].integration_norm == pytest.approx(norm, rel=1e-6)


def test_a_plateau_lowers_every_groups_rate():
    model = small_net()
    history = model.fit(
        loader(4),
        loader(4),
        epochs=5,
        learning_rate=1e-3,
        scheduler="plateau",
        plateau_patience=1,
        min_delta=1e9,
        **QUIET,
    )
    assert history.column("learning_rates")[-1] == {"all": 5e-4, "all (no decay)": 5e-4}
    assert [rates["all"] for rates in history.column("learning_rates")] == [1e-3, 1e-3, 1e-3, 5e-4, 5e-4]


def test_memory_treatments_train_the_same_network():
    plain = small_net()
    treated = copy.deepcopy(plain)
    treated.treatment = Treatment(recompute="blocks", stem_slices=2)
    for model in (plain, treated):
        torch.manual_seed(3)
        model.fit(
            loader(6, 5), epochs=2, modality_dropout=True, modality_dropout_ramp=0, stream_balance_weight=0.1, **QUIET
        )
    for mine, other in zip(treated.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)


def test_uint8_images_are_normalised_by_what_fit_was_told():
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(256, (4, num, 32, 32), dtype=torch.uint8, generator=generator) for num in (3, 1)]
    labels = torch.tensor([0, 1, 2, 3])
    model = small_net(torch.float32)
    model.fit([(*images, labels)], epochs=1, norm_stats=[([0.4, 0.5, 0.6], [0.2, 0.2, 0.3]), (0.3, 0.1)], **QUIET)
    colour = (images[0] / 255 - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor([0.2, 0.2, 0.3]).view(
        3, 1, 1
    )
    depth = (images[1] / 255 - 0.3) / 0.1
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(images), model([colour, depth]), rtol=1e-4, atol=1e-4)


def test_a_callback_and_ctrl_c_end_it_between_steps(capsys):
    model = small_net()
    history = model.fit(loader(4), epochs=5, callbacks=[lambda net, record: record.epoch == 1])
    assert history.stopped == "a callback asked for it" and len(history.epochs) == 2
    assert "epoch 2/5; train loss" in capsys.readouterr().err

    def batches():
        yield loader(4)[0]
        os.kill(os.getpid(), signal.SIGINT)
        yield loader(4)[0]
        yield loader(4)[0]

    history = model.fit(batches(), epochs=5, **QUIET)
    assert history.stopped == "interrupted" and history.column("num_steps") == [2]


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision(precision):
    model = small_net(torch.float32)
    history = model.fit(loader(6, dtype=torch.float32), epochs=2, precision=precision, **QUIET)
    assert all(math.isfinite(loss) for loss in history.column("train_loss"))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"modality_dropout_ratee": 0.1}, "did you mean 'modality_dropout_rate'"),
        ({"scheduler": "steps"}, "scheduler is 'steps'"),
        ({"optimizer": "lion"}, "optimizer is 'lion'"),
        ({"early_stopping": True}, "no validation loader for early_stopping"),
        ({"modality_dropout_schedule": "sideways"}, "give up or down"),
        ({"modality_dropout": True, "modality_dropout_rate": 1.5}, "a modality dropout rate of 1.5"),
        ({"stream_patience": [1, 2, 3]}, "stream_patience has 3 values, the network 2 streams"),
        ({"stream_balance_weight": 1.0, "stream_balance_layer": "fc"}, "no stage 'fc'"),
        ({"epochs": 0}, "epochs is 0"),
    ],
)
def test_an_option_that_makes_no_sense_is_one_error(options, text):
    with pytest.raises(ConfigError, match=text):
        small_net().fit(loader(4), **QUIET, **options)


def test_loaders_that_do_not_fit():
    model = small_net()
    with pytest.raises(DataError, match=r"a batch of a network with 2 streams is not a list of 2"):
        model.fit([list(loader(4)[0][:2])], **QUIET)
    with pytest.raises(DataError, match="yields nothing"):
        model.fit([], **QUIET)
    with pytest.raises(ConfigError, match="the loader has no length"):
        model.fit(iter(loader(4)), scheduler="cosine", **QUIET)
    with pytest.raises(ConfigError, match=r"streams \[\] are not of a network with 2"):
        model.evaluate(loader(4), blanked_streams={0, 1})
    with pytest.raises(ConfigError, match=r"streams \[2\]"):
        model.evaluate(loader(4), streams=[2])


def test_a_batch_is_taken_as_it_is():
    images, labels = samples(4)
    batch = Batch(tuple(images), labels, missing("11 10 11 01"))
    assert small_net().evaluate([batch]).num_samples == 4
    assert batch.restricted([1]).availability.tolist() == [[False, True]] * 3
