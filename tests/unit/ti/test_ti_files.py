import json

import pytest
import safetensors.torch
import torch

from frostline.errors import CheckpointError
from frostline.systems.ti.concept import Concept
from frostline.systems.ti.files import load_concepts, save_concepts
from ti_text_parts import WIDTH

OF = {"base_model": "infinity_2b_reg", "text_encoder": "google/flan-t5-xl"}


def concepts():
    rows = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0))
    made = [
        Concept("<s>", rows[:1], carrier="dog"),
        Concept("<toy>", rows[1:], carrier="teapot", space="t5-input", fixed_norm=True),
    ]
    with torch.no_grad():
        made[0].vectors.mul_(3.0)
    return made


def test_what_is_saved_comes_back_bit_for_bit(tmp_path):
    path = tmp_path / "new" / "concept.safetensors"
    save_concepts(path, concepts(), **OF, step=300)
    for made, loaded in zip(concepts(), load_concepts(path, **OF, width=WIDTH), strict=True):
        assert torch.equal(made.vectors, loaded.vectors) and torch.equal(made.rms, loaded.rms)
        assert made.slot == loaded.slot and made.fixed_norm == loaded.fixed_norm
        assert loaded.vectors.requires_grad
    assert [file.name for file in path.parent.iterdir()] == ["concept.safetensors"]


def test_a_file_is_a_few_kilobytes_and_says_what_it_fits(tmp_path):
    path = tmp_path / "concept.safetensors"
    wide = Concept("<s>", torch.randn(1, 2048), carrier="dog")
    save_concepts(path, [wide], **OF, step=300)
    assert path.stat().st_size < 9_000
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
        assert list(file.keys()) == ["<s>"]
    about = json.loads(metadata.pop("concepts"))["<s>"]
    assert metadata == {"format": "frostline-concept", "version": "1", **OF, "step": "300"}
    assert (about["space"], about["carrier"], about["num_vectors"]) == ("t5-output", "dog", 1)
    assert about["rms"] == wide.rms.tolist()


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"base_model": "infinity_8b"}, "trained for the base model 'infinity_2b_reg', this is 'infinity_8b'"),
        ({"text_encoder": "nano"}, "trained for the text encoder 'google/flan-t5-xl', this is 'nano'"),
        ({"width": 4096}, "64 wide, the text encoder's are 4096"),
    ],
)
def test_a_file_of_another_model_is_refused(tmp_path, wanted, words):
    path = tmp_path / "concept.safetensors"
    save_concepts(path, concepts(), **OF, step=1)
    with pytest.raises(CheckpointError, match=words):
        load_concepts(path, **wanted)


def test_a_file_that_is_none_of_ours_is_refused(tmp_path):
    path = tmp_path / "concept.safetensors"
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_concepts(path)
    path.write_bytes(b"nothing here at all")
    with pytest.raises(CheckpointError, match="damaged"):
        load_concepts(path)
    safetensors.torch.save_file({"<s>": torch.ones(1, 8)}, path)
    with pytest.raises(CheckpointError, match="import_concept"):
        load_concepts(path)
    ours = {"format": "frostline-concept", "version": "2"}
    safetensors.torch.save_file({"<s>": torch.ones(1, 8)}, path, ours)
    with pytest.raises(CheckpointError, match="version 2, this one reads 1"):
        load_concepts(path)
    for about in ("{", "{}x", '{"<t>": {}}', '{"<s>": {"carrier": "dog", "space": "t5-output"}}', "[1]"):
        safetensors.torch.save_file({"<s>": torch.ones(1, 8)}, path, ours | {"version": "1", "concepts": about})
        with pytest.raises(CheckpointError, match="damaged"):
            load_concepts(path)
