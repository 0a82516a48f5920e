"""Examples: functions of their number, whoever asks, from however few pictures."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from frostline.config import DataConfig
from frostline.errors import ConfigError, DataError
from frostline.scenes import THINGS
from frostline.systems.ti.batches import Latents, ThingPictures, TiDataset, collate, draw_example, open_sources
from frostline.systems.ti.image_model import LazyTokenizer, find_image_model
from frostline.training import BatchStream, Group, Sample
from ti_parts import small_config, write_model

PHOTOS = Path(__file__).parents[4] / "shared" / "data" / "photos" / "images"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


def opened(config, **changes):
    model = find_image_model(config.system)
    sources = open_sources(config, model.image_size)
    latents = Latents(sources, model, LazyTokenizer(model))
    settings = {"bit_flips": 0.3, "seed": 0, "num_rows": 6} | changes
    return TiDataset(sources, latents, model.quantizer, model.schedule, **settings), sources, latents


def stream(dataset, group, **keys):
    data = DataConfig(num_workers=keys.pop("num_workers", 0))
    return BatchStream(dataset, collate, data=data, batch_size=6, gradient_accumulation_steps=keys.pop("parts", 1),
                       seed=0, group=group)  # fmt: skip


def taken(batches, num_steps):
    steps = batches.iterate(0)
    found = [collate(next(steps)) for _ in range(num_steps)]
    steps.close()
    return found


def rows(batches):
    """What each row is, without order."""
    return sorted(
        (str(b.bits[i].tolist()), str(b.inputs[i].tolist()), int(b.prompts[i])) for b in batches for i in range(len(b))
    )


def test_a_step_is_an_epoch_so_three_pictures_fill_any_batch_and_any_worker(directory):
    dataset, sources, _ = opened(small_config(directory))
    assert (len(sources[0]), len(dataset)) == (3, 6)
    plain = taken(stream(dataset, Group(torch.device("cpu"))), 3)
    assert [len(batch) for batch in plain] == [6, 6, 6]
    with_workers = taken(stream(dataset, Group(torch.device("cpu")), num_workers=2), 3)
    for mine, other in zip(plain, with_workers, strict=True):
        assert torch.equal(mine.bits, other.bits) and torch.equal(mine.inputs, other.inputs)
        assert torch.equal(mine.prompts, other.prompts)
    assert rows(plain[:1]) != rows(plain[1:2]), "every step turns other bits"


def test_processes_and_micro_batches_share_the_same_rows(directory):
    dataset, _, _ = opened(small_config(directory))
    whole = rows(taken(stream(dataset, Group(torch.device("cpu"))), 1))
    parted = []
    for rank in range(2):
        parted += taken(stream(dataset, Group(torch.device("cpu"), rank, 2), parts=3), 1)
    assert rows(parted) == whole


def test_bits_are_the_pictures_and_flips_are_in_the_inputs_alone(directory):
    config = small_config(directory)
    flipped, _, latents = opened(config)
    plain, _, _ = opened(config, bit_flips=0.0)
    samples = [Sample(number, 0) for number in range(6)]
    turned, straight = collate(flipped.__getitems__(samples)), collate(plain.__getitems__(samples))
    assert torch.equal(turned.bits[:, :1], straight.bits[:, :1]), "the first scale's labels have no flips before them"
    assert not torch.equal(turned.inputs, straight.inputs)
    assert torch.equal(turned.prompts, straight.prompts)
    features = torch.stack([latents.fetch(0, number, False) for number in range(3)])
    model = find_image_model(config.system)
    known = model.quantizer.encode(features, model.schedule).bits
    assert all(any(torch.equal(row, bits) for bits in known) for row in straight.bits)


def test_concepts_take_turns_and_have_their_own_prompts(directory):
    config = small_config(directory, data={"concept": ("star", "circle")}, concept={"placeholder": ("<a>", "<b>")})
    dataset, sources, _ = opened(config)
    assert [draw_example(sources, number, 0)[0] for number in range(4)] == [0, 1, 0, 1]
    assert all("<a>" in prompt and "thing" not in prompt for prompt in sources[0].prompts)
    assert all("<b>" in prompt and "circle" not in prompt for prompt in sources[1].prompts)
    batch = collate(dataset.__getitems__([Sample(number, 0) for number in range(6)]))
    assert [int(prompt) // 3 for prompt in batch.prompts] == [0, 1, 0, 1, 0, 1]


def test_things_are_pictures_of_one_shape_with_what_they_show(directory):
    config = small_config(directory, data={"concept": ("heart",), "num_pictures": 5})
    (source,) = open_sources(config, (32, 32))
    assert isinstance(source, ThingPictures) and set(source.things.shapes.tolist()) == {THINGS.index("heart")}
    assert source.pixels(0).shape == (3, 32, 32) and source.pixels(0).abs().max() <= 1
    templates = open_sources(replace(config, data=replace(config.data, captions="object")), (32, 32))[0]
    assert "a photo of a <s>" in templates.prompts
    own = open_sources(replace(config, data=replace(config.data, templates=("my {}",))), (32, 32))[0]
    assert own.prompts == ("my <s>",)


def test_captions_of_a_folder_are_taken_where_there_are_some(directory, tmp_path):
    for number in range(3):
        Image.new("RGB", (20, 12), (40 * number, 90, 200)).save(tmp_path / f"{number}.png")
    config = small_config(directory, data={"kind": "folders", "path": (str(tmp_path),)})
    dataset, (source,), _ = opened(config)
    assert "a photo of a <s>" in source.prompts
    assert len(taken(stream(dataset, Group(torch.device("cpu"))), 1)[0]) == 6
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(f"a <s>, number {number}")
    assert open_sources(config, (8, 8))[0].prompts[1] == "a <s>, number 1"
    flipped = replace(config, data=replace(config.data, flip=True))
    assert len(opened(flipped)[2]) == 6, "a picture and its mirror image"


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="no photographs here")
def test_photographs_become_batches(directory):
    dataset, (source,), latents = opened(small_config(directory, data={"kind": "folders", "path": (str(PHOTOS),)}))
    assert len(source) >= 5
    (batch,) = taken(stream(dataset, Group(torch.device("cpu"))), 1)
    assert batch.bits.shape == (6, 21, 6) and batch.inputs.shape == (6, 20, 6)
    assert latents.fetch(0, 0, False).isfinite().all()


def test_pictures_without_a_placeholder_each_are_refused(directory, tmp_path):
    with pytest.raises(ConfigError, match=r"2 of --data.concept for 1 placeholders \(<s>\)"):
        open_sources(small_config(directory, data={"concept": ("star", "heart")}), (8, 8))
    with pytest.raises(ConfigError, match=r"0 of --data.path"):
        open_sources(small_config(directory, data={"kind": "folders"}), (8, 8))
    with pytest.raises(ConfigError, match="no such thing: comet"):
        open_sources(small_config(directory, data={"concept": ("comet",)}), (8, 8))
    with pytest.raises(DataError, match="no pictures"):
        open_sources(small_config(directory, data={"kind": "folders", "path": (str(tmp_path),)}), (8, 8))
    with pytest.raises(ConfigError, match="things are drawn on squares"):
        open_sources(small_config(directory), (8, 16))
