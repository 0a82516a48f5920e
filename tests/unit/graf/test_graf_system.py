"""Both players on the training engine: what trains, what is kept, what a stopped run loses."""

import dataclasses
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from frostline.config import MemoryConfig, dump_config
from frostline.errors import ConfigError
from frostline.regions import trainable_parameters, trainable_state
from frostline.systems.graf.config import (
    GrafConfig,
    GrafDataConfig,
    GrafTrainingConfig,
    MetricsConfig,
    OptimizersConfig,
    SamplesConfig,
)
from frostline.systems.graf.evaluation import evaluation_report
from frostline.systems.graf.planning import _most
from frostline.systems.graf.review import TRAINABLES, read_scores
from frostline.systems.graf.system import GrafSystem
from frostline.training import CheckpointStore, Group, RunLog, run
from graf_parts import small
from two_processes import results_of_both

ALONE = Group(torch.device("cpu"))
QUIET = {"metrics": {"every": 0}, "samples": {"every": 0}}


class Silent:
    def __getattr__(self, name):
        return lambda *arguments: None


def configured(training=None, data=None, **sections):
    sections = {**QUIET, "camera": {"image_size": 4}, "rendering": {"chunk_rays": 64, "num_samples": 4}, **sections}
    system = small(**{"discriminator": {"r1_every": 2}, **sections})
    keys = {"num_steps": 4, "batch_size": 4, "log_every": 1, "checkpoint_every": 2, **(training or {})}
    return GrafConfig(
        data=replace(GrafDataConfig(num_images=12, num_test=8), **(data or {})),
        training=GrafTrainingConfig(**keys),
        system=system,
    )


def train(config, directory, group=ALONE, resume=False):
    system = GrafSystem(config, group, directory=directory)
    run(
        system,
        config.training,
        group=group,
        store=CheckpointStore(directory, TRAINABLES),
        config_text=dump_config(config),
        log=RunLog(directory / "log.jsonl", log_every=1, tensorboard=False),
        observer=Silent(),
        resume=resume,
    )
    return system


def state(system):
    return {name: tensor.clone() for name, tensor in trainable_state(system.model).items()}


def test_both_players_train_and_the_average_follows(tmp_path):
    config = configured()
    start = state(GrafSystem(config, ALONE))
    system = train(config, tmp_path)
    end = state(system)
    moved = {name for name in end if not torch.equal(start[name], end[name])}
    assert set(trainable_parameters(system.model)) <= moved
    assert {name for name in end if name.startswith("average.") and "coarse" not in name} <= moved
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines[:2]] == ["discriminator", "generator"]
    penalised = [line["step"] for line in lines if line["phase"] == "discriminator" and "r1" in line["terms"]]
    assert penalised == [1, 3]


def test_a_resumed_run_is_the_run_bit_by_bit(tmp_path):
    sections = {"discriminator": {"augmentation": "both", "label_head": "mce", "r1_every": 2}}
    whole = state(train(configured(**sections), tmp_path / "whole"))
    train(configured({"num_steps": 2}, **sections), tmp_path / "parts")
    resumed = state(train(configured(**sections), tmp_path / "parts", resume=True))
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_micro_batches_are_the_batch(tmp_path):
    """Spectral normalisation iterates once a forward, so that this holds without it."""
    keys = {"discriminator": {"norm": "none", "r1_every": 2}}
    whole = state(train(configured({"num_steps": 1}, **keys), tmp_path / "whole"))
    parts = {"num_steps": 1, "gradient_accumulation_steps": 2}
    cut = state(train(configured(parts, **keys), tmp_path / "cut"))
    rates = {"discriminator": 1e-4}
    for name, value in whole.items():
        step = rates.get(
            name.partition(".")[0], 5e-4
        )  # Adam's first step is a sign, where rounding can be all there is
        share = ((cut[name] - value).abs() > 1e-2 * step).double().mean()
        assert share <= 0.1, name


def test_two_processes_are_one(tmp_path):
    results = results_of_both(__file__, tmp_path / "two")
    start = state(GrafSystem(TWO, ALONE))
    alone = state(train(TWO, tmp_path / "one"))
    assert all((alone[name] - value).abs().max() > 5e-6 for name, value in start.items() if name.endswith("weight"))
    for name, value in alone.items():
        assert torch.equal(results[0][name], results[1][name]), name
        if value.is_floating_point():
            assert (results[0][name] - value).abs().max() <= 1e-6, name


TWO = configured(
    optimizers={"kind": "rmsprop", "discriminator_learning_rate": 1e-6},
    discriminator={"r1_every": 2},
    ccsr={"num_views": 4},
)
TWO = replace(TWO, training=replace(TWO.training, learning_rate=1e-6, num_steps=3))


def test_reviews_keep_samples_scores_and_the_best(tmp_path):
    pytest.importorskip("torchmetrics")
    config = configured(
        metrics={"every": 2, "num_images": 8, "feature_steps": 2},
        samples={"every": 4, "num_samples": 4, "num_views": 2},
    )
    train(config, tmp_path)
    scores = read_scores(tmp_path)
    assert [step for step, _ in scores] == [0, 2, 4]
    assert all(score.fid > 0 and 0 <= score.class_accuracy <= 1 for _, score in scores)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["step-000000.png", "step-000004.png"]
    best = min(scores, key=lambda pair: pair[1].kid)[0]
    files = CheckpointStore(tmp_path / "best", TRAINABLES)
    assert files.load_trainables().keys() == trainable_state(GrafSystem(config, ALONE).model).keys()
    written = safetensors_step(files.trainables)
    assert written == best
    whole = (tmp_path / "scores.jsonl").read_text()
    train(replace(config, training=replace(config.training, num_steps=6)), tmp_path, resume=True)
    assert (tmp_path / "scores.jsonl").read_text().startswith(whole)


def safetensors_step(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return int(file.metadata()["step"])


def test_reconstruction_has_one_phase(tmp_path):
    config = configured(objective="reconstruction", data={"num_images": 8}, field={"num_classes": 4})
    system = GrafSystem(config, ALONE)
    assert [phase.name for phase in system.phases] == ["generator"] and system.model.discriminator is None
    before = state(system)
    after = state(train(config, tmp_path))
    still = [name for name in trainable_parameters(system.model) if torch.equal(before[name], after[name])]
    assert still == []


def test_half_precision_is_the_fields_alone():
    system = GrafSystem(configured({"precision": "16-mixed"}), ALONE)
    judging, player = system.phases
    assert not judging.scaler.is_enabled() and player.scaler.is_enabled()
    assert "16-mixed in the field's MLP alone" in system.notes()


def test_the_most_rays_of_a_ladder():
    """Where half as many save nothing, none below are traced."""
    peaks, traced = {0: 90, 64: 70, 32: 50, 16: 40, 8: 40}, []

    def peak(rays):
        traced.append(rays)
        return peaks[rays]

    assert [_most([0, 64, 32, 16, 8, 4], peak, limit) for limit in (95, 70, 49, 10, 0)] == [0, 64, 16, 16, 16]
    assert 4 not in traced and _most([0, 64, 32], {0: 5, 64: 5, 32: 5}.__getitem__, 1) == 0


def test_notes_name_the_rays_of_a_budget():
    system = GrafSystem(configured(), ALONE)
    assert "16 rays an image, 64 rays at once, deferred recompute" in system.notes()
    system.model.set_chunk_rays_(8)
    assert "16 rays an image, 8 rays at once, deferred recompute" in system.notes()


def test_reconstruction_says_which_images_were_seen():
    config = configured(objective="reconstruction", data={"num_images": 8, "num_test": 4})
    system = GrafSystem(config, ALONE)
    assert evaluation_report(system, None).title.endswith("that training did not see")
    system.scorer.test.seen = True
    assert evaluation_report(system, None).title == "4 images of box, ring, cup, step that training saw"


def test_what_cannot_be_used():
    for keys in ({"checkpoint": "none"}, {"frozen_dtype": "bfloat16"}):
        with pytest.raises(ConfigError, match=f"graf has no frozen part, and does not read memory.{next(iter(keys))}"):
            GrafSystem(replace(configured(), memory=MemoryConfig(**keys)), ALONE)
    with pytest.raises(ConfigError, match=r"the data set has 4 classes, the field 3"):
        GrafSystem(configured(field={"num_classes": 3}), ALONE)
    with pytest.raises(ConfigError, match=r"all there is lies within 1 of the origin, 10 away from the camera"):
        GrafSystem(configured(camera={"radius": 10.0}), ALONE)
    GrafSystem(configured(camera={"radius": 10.0}, rendering={"bound_radius": 0.0}), ALONE)
    alone = GrafSystem(configured(metrics={"num_images": 1, "feature_steps": 1}), ALONE)
    with pytest.raises(ConfigError, match=r"there are 1 generated and 1 real ones"):
        alone.scorer.score(alone.model.average)


def test_every_key_of_a_run_is_read():
    """By name: the classes' own keys appear as attributes in the system's sources."""
    root = Path(sys.modules[GrafSystem.__module__].__file__).parent
    text = "".join(path.read_text() for path in root.glob("*.py") if path.name != "config.py")
    for kind in (OptimizersConfig, MetricsConfig, SamplesConfig, GrafDataConfig):
        for field in dataclasses.fields(kind):
            if field.name not in ("num_workers", "force_num_workers", "prefetch_factor"):  # the engine's
                assert f".{field.name}" in text, field.name


if __name__ == "__main__":
    place = Path(sys.argv[1])
    processes = Group.open("cpu")
    trained = state(train(TWO, place, processes))
    torch.save(trained, place / f"{processes.rank}.pt")
    processes.close()
