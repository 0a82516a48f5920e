"""The answer is what the decoder must say: shifted once, without pads, after the prompt."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from semcom_parts import nano, scene_batch, small_model

IGNORED = -100


@pytest.fixture(scope="module")
def model():
    return small_model(codec="none", channel="noiseless")


@pytest.fixture(scope="module")
def mixed():
    """Captions and detections in turn; their prompts and answers differ in length."""
    return scene_batch(4, task="both")


@torch.no_grad()
def loss_of(model, batch, rows=None):
    rows = list(range(len(batch.tasks))) if rows is None else rows
    features = model.features_of(batch)[rows]
    tasks = [batch.tasks[row] for row in rows]
    return model.receiver.loss(features, tasks, batch.labels[rows])


@torch.no_grad()
def test_the_decoder_reads_the_answer_shifted_by_one_and_is_asked_for_it_unshifted(model):
    batch = scene_batch(3)
    labels, florence = batch.labels, nano().model
    encoded, _ = model.receiver.encode(model.features_of(batch), batch.tasks)
    text = florence.config.text_config
    read = torch.cat([torch.full((3, 1), text.decoder_start_token_id), labels[:, :-1]], 1)
    read[read == IGNORED] = text.pad_token_id
    states = florence.model.language_model.decoder(input_ids=read, encoder_hidden_states=encoded).last_hidden_state
    expected = F.cross_entropy(florence.lm_head(states).flatten(0, 1), labels.flatten())
    assert model.receiver.loss(model.features_of(batch), batch.tasks, labels).item() == pytest.approx(
        expected.item(), rel=1e-6
    )
    assert expected < 0.1, "nano knows these answers: another shift would not be this low"


def test_pads_do_not_count(model):
    batch = scene_batch(3)
    padded = replace(batch, labels=F.pad(batch.labels, (0, 5), value=IGNORED))
    assert loss_of(model, padded).item() == pytest.approx(loss_of(model, batch).item(), rel=1e-5)
    pads = replace(batch, labels=F.pad(batch.labels, (0, 5), value=1))
    assert loss_of(model, pads) > 5 * loss_of(model, batch)


def test_a_shorter_answer_is_not_changed_by_a_longer_neighbour(model, mixed):
    count = (mixed.labels != IGNORED).sum(1)
    alone = torch.stack([loss_of(model, mixed, [row]) for row in range(8)])
    assert len(set(count.tolist())) > 1
    assert loss_of(model, mixed).item() == pytest.approx(((alone * count).sum() / count.sum()).item(), rel=1e-5)


def test_mixed_tasks_get_each_their_own_prompt(model, mixed):
    assert set(mixed.tasks) == {"<CAPTION>", "<OD>"}
    order = [0, 5, 2, 7, 4, 1, 6, 3]
    features = model.features_of(mixed)
    together = model.receiver.hidden(features[order], [mixed.tasks[row] for row in order], mixed.labels[order])
    for position, row in enumerate(order):
        alone = model.receiver.hidden(features[[row]], [mixed.tasks[row]], mixed.labels[[row]])
        assert torch.allclose(together[position], alone[0], rtol=1e-4, atol=1e-5)
    wrong = model.receiver.loss(features, mixed.tasks[::-1], mixed.labels)
    assert wrong > 10 * loss_of(model, mixed)


def test_the_prompt_stands_behind_the_picture_in_the_encoder(model, mixed):
    features = model.features_of(mixed)
    prompts = nano().prompt_ids
    encoded, mask = model.receiver.encode(features[:4], ["<CAPTION>"] * 4)
    assert encoded.shape[1] == 17 + len(prompts["<CAPTION>"])
    assert mask is None
    encoded, mask = model.receiver.encode(features[[0, 4]], ["<CAPTION>", "<OD>"])
    lengths = [17 + len(prompts[task]) for task in ("<CAPTION>", "<OD>")]
    assert encoded.shape[1] == max(lengths)
    assert mask.tolist() == [[1] * length + [0] * (max(lengths) - length) for length in lengths]


def test_mixed_tasks_generate_what_each_generates_alone(model, mixed):
    features = model.features_of(mixed)
    together = model.receiver.generate(features, mixed.tasks)
    assert together == [
        model.receiver.generate(features[[row]], [mixed.tasks[row]])[0] for row in range(len(mixed.tasks))
    ]


def test_predicting_with_the_true_past_decides_what_greedy_decoding_says(model, mixed):
    features = model.features_of(mixed)
    best = model.receiver.predict(features, mixed.tasks, mixed.labels)
    right = ((best == mixed.labels) | (mixed.labels == IGNORED)).all(1)
    written = model.receiver.generate(features, mixed.tasks)
    assert [a == b for a, b in zip(written, mixed.answers, strict=True)] == right.tolist()
