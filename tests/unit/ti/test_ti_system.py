"""ti on the training engine: what trains, what is kept, what is let go, and what a stopped run loses."""

import json
import os
import signal
import warnings
from dataclasses import replace

import pytest
import torch

from frostline.config import dump_config
from frostline.errors import ConfigError
from frostline.regions import trainable_parameters, trainable_state
from frostline.systems.ti.concept import check_trainable
from frostline.systems.ti.config import SamplingConfig
from frostline.systems.ti.files import load_concepts, read_safetensors
from frostline.systems.ti.infinity.loss import bit_losses
from frostline.systems.ti.system import TiSystem
from frostline.systems.ti.verbs import TRAINABLES
from frostline.training import CheckpointStore, RunLog, run, run_step
from ti_parts import ALONE, small_config, write_model


class Silent:
    def __getattr__(self, name):
        return lambda *arguments: None


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


def train(config, out, resume=False, system=None):
    system = system or TiSystem(config, ALONE, directory=out)
    system.fill_cache(lambda done, total: None)
    system.release_upstream_()
    run(
        system,
        config.training,
        group=ALONE,
        store=CheckpointStore(out, TRAINABLES),
        config_text=dump_config(config),
        log=RunLog(out / "log.jsonl", log_every=1, tensorboard=False),
        observer=Silent(),
        resume=resume,
    )
    return system


def vectors(system):
    return torch.cat([concept.vectors.detach() for concept in system.concepts])


def test_the_vectors_train_and_nothing_else_changes(directory, tmp_path):
    config = small_config(directory)
    system = TiSystem(config, ALONE, directory=tmp_path)
    frozen = {name: tensor.clone() for name, tensor in system.model.transformer.state_dict().items()}
    start = vectors(system).clone()
    assert list(trainable_parameters(system.model)) == ["<s>"] == list(trainable_state(system.model))
    check_trainable(system.phases[0].optimizers[0], system.concepts, [system.model.transformer])
    train(config, tmp_path, system=system)
    assert not torch.equal(vectors(system), start)
    assert vectors(system).square().mean().sqrt().item() == pytest.approx(start.square().mean().sqrt().item(), rel=1e-5)
    now = system.model.transformer.state_dict()
    assert all(torch.equal(tensor, now[name]) for name, tensor in frozen.items())
    assert not system.model.transformer.training, "eval for good, though the engine called train()"
    assert not system.tokenizer.is_loaded and not system.encoder.is_loaded


def test_the_log_has_every_scale(directory, tmp_path):
    train(small_config(directory), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        terms = line["terms"]
        assert list(terms) == ["bits 1x1", "bits 2x2", "bits 4x4"]
        assert line["loss"] == pytest.approx(sum(terms.values()) / 3, rel=1e-5), "each scale weighs the same"


@pytest.mark.parametrize(("weighting", "weights"), [("tokens", (1, 4, 16)), ("sides", (1, 2, 4))])
def test_other_weightings(directory, weighting, weights):
    from frostline.systems.ti.config import LossConfig

    system = TiSystem(small_config(directory, system={"loss": LossConfig(weighting=weighting)}), ALONE)
    record = run_step(system.phases[0], next(system.batches().iterate(0)), ALONE)
    expected = sum(w * v for w, v in zip(weights, record.terms.values(), strict=True)) / sum(weights)
    assert record.loss == pytest.approx(expected, rel=1e-5)


def test_the_checkpoint_is_a_concept_file_of_a_few_kilobytes(directory, tmp_path):
    system = train(small_config(directory), tmp_path)
    path = tmp_path / "concept.safetensors"
    assert path.stat().st_size < 4096 and (tmp_path / "resume.pt").exists()
    ids = {"base_model": system.image_model.identity, "text_encoder": system.encoder.identity}
    (concept,) = load_concepts(path, width=32, **ids)
    assert torch.equal(concept.vectors, vectors(system)) and torch.equal(concept.rms, system.concepts[0].rms)
    assert (concept.name, concept.carrier, concept.space) == ("<s>", "thing", "t5-output")
    assert read_safetensors(path)[0]["step"] == "4"


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_ends_at_the_same_bits(directory, tmp_path, accumulation):
    config = small_config(directory, training={"gradient_accumulation_steps": accumulation})
    train(config, tmp_path / "whole")
    half = replace(config, training=replace(config.training, num_steps=2, schedule="constant"))
    whole = replace(config, training=replace(config.training, schedule="constant"))
    train(whole, tmp_path / "steady")
    train(half, tmp_path / "parts")
    resumed = train(whole, tmp_path / "parts", resume=True)
    files = [CheckpointStore(tmp_path / name, TRAINABLES).load() for name in ("steady", "parts")]
    assert torch.equal(files[0].trainables["<s>"], files[1].trainables["<s>"])
    states = [file.phases["concept"]["optimizers"][0]["state"][0] for file in files]
    assert all(torch.equal(states[0][key], states[1][key]) for key in ("exp_avg", "exp_avg_sq"))
    assert torch.equal(resumed.concepts[0].vectors, files[0].trainables["<s>"])


def test_accumulation_is_the_large_batch(directory, tmp_path):
    ends = []
    for parts in (1, 3):
        config = small_config(directory, training={"gradient_accumulation_steps": parts})
        ends.append(vectors(train(config, tmp_path / str(parts))))
    assert (ends[0] - ends[1]).abs().max() <= 1e-6


def test_an_interrupt_saves_the_concept(directory, tmp_path):
    config = small_config(directory, training={"num_steps": 50, "checkpoint_every": 50, "learning_rate": 0.03})

    class Interrupting(TiSystem):
        def review(self, step):
            if step == 3:
                os.kill(os.getpid(), signal.SIGINT)

    system = train(config, tmp_path, system=Interrupting(config, ALONE, directory=tmp_path))
    (concept,) = load_concepts(tmp_path / "concept.safetensors")
    assert read_safetensors(tmp_path / "concept.safetensors")[0]["step"] == "3"
    assert torch.equal(concept.vectors, vectors(system))


@pytest.mark.parametrize(
    "memory",
    [
        {"checkpoint": "none"},
        {"checkpoint_parts": False},
        {"offload": "disk"},
        {"feature_cache": "disk"},
    ],
)
def test_memory_choices_change_no_bit(directory, tmp_path, memory):
    plain = vectors(train(small_config(directory, memory={"checkpoint": "none"}), tmp_path / "plain"))
    assert torch.equal(vectors(train(small_config(directory, memory=memory), tmp_path / "lean")), plain)


def test_stored_weights_change_no_bit_under_autocast(directory, tmp_path):
    half = {"precision": "bf16-mixed"}
    plain = vectors(train(small_config(directory, training=half), tmp_path / "plain"))
    system = train(small_config(directory, training=half, memory={"bfloat16_weights": True}), tmp_path / "lean")
    assert system.model.transformer.all_blocks[0].ffn.fc1.weight.dtype is torch.bfloat16
    assert torch.equal(vectors(system), plain)
    with pytest.raises(ConfigError, match="bfloat16 weights are what bf16-mixed computes with"):
        TiSystem(small_config(directory, memory={"bfloat16_weights": True}), ALONE)


def test_a_cache_on_disk_serves_the_next_run_without_the_models(directory, tmp_path, monkeypatch):
    config = small_config(
        directory, memory={"feature_cache": "disk", "feature_cache_directory": str(tmp_path / "cache")}
    )
    first = vectors(train(config, tmp_path / "a"))
    names = sorted(path.name.partition("-")[0] for path in (tmp_path / "cache").iterdir())
    assert names == ["latents", "prompts", "prompts"]

    def load(self, device="cpu"):
        raise AssertionError("the image tokenizer is not needed")

    monkeypatch.setattr("frostline.systems.ti.image_model.ImageModel.load_tokenizer", load)
    assert torch.equal(vectors(train(config, tmp_path / "b")), first)


def test_before_the_text_encoder_it_is_part_of_the_step(directory, tmp_path):
    config = small_config(directory, concept={"space": "t5-input"})
    system = TiSystem(config, ALONE, directory=tmp_path)
    start = vectors(system).clone()
    frozen = {name: tensor.clone() for name, tensor in system.model.text_encoder.state_dict().items()}
    train(config, tmp_path, system=system)
    assert system.encoder.is_loaded and not torch.equal(vectors(system), start)
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in system.model.text_encoder.state_dict().items())
    (concept,) = load_concepts(tmp_path / "concept.safetensors")
    assert concept.space == "t5-input" and not concept.fixed_norm
    lengths = [tensor.square().mean().sqrt().item() for tensor in (start, vectors(system))]
    assert lengths[0] != pytest.approx(lengths[1], rel=1e-4), "its length means something there"


def test_fixed_norm_can_be_chosen(directory, tmp_path):
    system = train(small_config(directory, concept={"fixed_norm": "never"}), tmp_path)
    concept = system.concepts[0]
    assert not torch.allclose(concept.vectors.detach().square().mean(-1).sqrt(), concept.rms, rtol=1e-4)


def test_several_vectors_and_concepts_each_get_a_gradient(directory):
    settings = {"placeholder": ("<a>", "<b>"), "num_vectors": 2}
    config = small_config(directory, data={"concept": ("star", "moon")}, concept=settings)
    system = TiSystem(config, ALONE)
    assert [concept.num_vectors for concept in system.concepts] == [2, 2]
    batch = next(system.batches().iterate(0))[0]
    system.phases[0].loss(batch).total.backward()
    for concept in system.concepts:
        assert (concept.vectors.grad.abs().sum(1) > 0).all(), concept.name


def test_the_loss_is_the_bits_cross_entropy(directory):
    config = small_config(directory)
    system = TiSystem(config, ALONE)
    batch = next(system.batches().iterate(0))[0]
    text = system.texts.fetch(batch.prompts.tolist(), system.concepts)
    with torch.no_grad():
        losses = bit_losses(system.model.transformer(text, batch.inputs, system.image_model.schedule), batch.bits)
    spans = system.image_model.schedule.spans
    expected = torch.stack([losses[:, span].mean() for span in spans]).mean()
    torch.testing.assert_close(system.phases[0].loss(batch).total.detach(), expected)


def test_pictures_are_written_when_they_are_due(directory, tmp_path):
    from frostline.systems.ti.config import ValidationConfig

    config = small_config(directory, system={"validation": ValidationConfig(every=3, prompts=("a {}", "a red {}"))})
    train(config, tmp_path)
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == ["step-000000.png", "step-000003.png", "step-000004.png"], "the last step has one too"
    quiet = small_config(directory)
    assert torch.equal(vectors(train(quiet, tmp_path / "quiet")), load_concepts(tmp_path / TRAINABLES)[0].vectors)


def test_a_learning_rate_that_goes_nowhere_is_noticed(directory):
    with pytest.warns(UserWarning, match="<s> will learn nothing: 4 steps of learning rate 0.0001"):
        TiSystem(small_config(directory, concept={"ti_lr": 1e-4}), ALONE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        system = TiSystem(small_config(directory, concept={"ti_lr": 0.5}), ALONE)
    assert system.phases[0].optimizers[0].param_groups[0]["initial_lr"] == 0.5


def test_values_that_cannot_be_used_are_refused(directory):
    def refused(**sections):
        with pytest.raises(ConfigError) as raised:
            TiSystem(small_config(directory, **sections), ALONE)
        return raised.value.what

    assert "weight_decay is 0.01" in refused(training={"weight_decay": 0.01})
    assert "ti does not read memory.frozen_dtype" in refused(memory={"frozen_dtype": "bfloat16"})
    assert "ti does not read memory.upstream_chunk" in refused(memory={"upstream_chunk": 4})
    assert "2 carriers for 1 placeholders" in refused(concept={"carrier": ("thing", "circle")})
    two = {"concept": {"placeholder": ("<a>", "<a>")}, "data": {"concept": ("star", "moon")}}
    assert "the placeholders are <a>, <a>" in refused(**two)
    assert "has a dot" in refused(concept={"placeholder": ("<v1.0>",)})
    assert "is no placeholder" in refused(concept={"placeholder": ("star",)})
    assert "no such thing: banana" in refused(data={"concept": ("banana",)})
    assert "does not read data.path" in refused(data={"path": ("cats",)})
    assert "does not read data.flip" in refused(data={"flip": True})
    assert "top_p 2" in refused(system={"sampling": SamplingConfig(top_p=2.0)})
    assert "temperature is 0" in refused(system={"sampling": SamplingConfig(temperature=0.0)})


@pytest.mark.parametrize("space", ["t5-output", "t5-input"])
def test_the_text_encoder_makes_room_for_the_image_tokenizer(directory, space, monkeypatch):
    system, held = TiSystem(small_config(directory, concept={"space": space}), ALONE), []
    monkeypatch.setattr(system.latents, "fill_", lambda progress: held.append(system.encoder.is_loaded))
    system.fill_cache(lambda done, total: None)
    assert held == [space == "t5-input"]


def test_a_micro_batch_may_be_too_small_for_every_concept(directory):
    """What is audited and measured names every concept all the same."""
    two = {"concept": {"placeholder": ("<a>", "<b>")}, "data": {"concept": ("star", "moon")}}
    steps = {"batch_size": 4, "gradient_accumulation_steps": 4}
    system = TiSystem(small_config(directory, training=steps, **two), ALONE)
    work, start = system.workload(), vectors(system)
    assert [len(each) for each in work.inputs] == [1] * 4, "two micro-batches of one: bits and inputs"
    work.step()
    assert (vectors(system) != start).any(1).all()
    whole = TiSystem(small_config(directory, training={"batch_size": 4}, **two), ALONE).workload()
    assert [len(each) for each in whole.inputs] == [4, 4]


def test_notes_and_components_say_what_is_going_on(directory):
    system = TiSystem(small_config(directory), ALONE)
    text = "\n".join(system.notes())
    for part in (
        "8 x 8 pixels, 21 tokens in 3 scales of 6 bits",
        "<s> 3",
        "1 of <s> from thing",
        "checkpointed blocks",
    ):
        assert part in text
    trains = {component.name: component.num_trainable for component in system.components()}
    assert trains == {"text encoder": 0, "image tokenizer": 0, "transformer": 0, "<s>": 32}
