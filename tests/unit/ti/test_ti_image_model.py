"""Directories of models: what is found in them, what is loaded, what is refused."""

import pytest
import torch

from frostline.errors import CheckpointError, ConfigError
from frostline.systems.ti.config import TiSystemConfig
from frostline.systems.ti.image_model import LazyTokenizer, find_image_model, shapes_of
from frostline.systems.ti.infinity.schedule import Schedule, published_schedule
from frostline.systems.ti.infinity.sizes import TOKENIZERS, TRANSFORMERS
from ti_parts import GRIDS, TOKENIZER, TRANSFORMER, write_model

LAYOUTS = ("safetensors", "pth", "shards")


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    return {layout: write_model(tmp_path_factory.mktemp(layout) / layout, layout=layout) for layout in LAYOUTS}


def find(directory, **keys):
    return find_image_model(TiSystemConfig(model=str(directory), **keys))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_frozen_models(directories, layout):
    model, plain = find(directories[layout]), find(directories["safetensors"])
    assert (model.transformer_config, model.tokenizer_config) == (TRANSFORMER, TOKENIZER)
    assert (model.schedule, model.grid, model.image_size) == (Schedule(GRIDS), (4, 4), (8, 8))
    pairs = (
        (model.load_transformer(), plain.load_transformer()),
        (model.load_tokenizer(), plain.load_tokenizer()),
        (model.load_text_encoder().model, plain.load_text_encoder().model),
    )
    for mine, other in pairs:
        assert not mine.training and not any(parameter.requires_grad for parameter in mine.parameters())
        state = other.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in mine.state_dict().items())


def test_the_identity_is_that_of_the_weights(directories, tmp_path):
    first = find(directories["pth"])
    assert first.identity == find(directories["pth"]).identity and first.identity.startswith("infinity_tiny_reg@")
    again = write_model(tmp_path / "again", layout="pth")
    state = torch.load(again / "infinity_tiny_reg.pth", weights_only=True)
    state["trainer"]["gpt_fsdp"]["pos_start"] += 1
    torch.save(state, again / "infinity_tiny_reg.pth")
    assert find(again).identity != first.identity
    assert find(again).tokenizer_identity == first.tokenizer_identity


def test_a_tokenizer_is_loaded_when_it_is_needed_and_let_go(directories):
    tokenizer = LazyTokenizer(find(directories["pth"]))
    assert not tokenizer.is_loaded
    assert tokenizer.model is tokenizer.model and tokenizer.is_loaded
    tokenizer.release_()
    assert not tokenizer.is_loaded


@pytest.mark.parametrize(
    ("file", "size", "tokenizer"),
    [
        ("infinity_2b_reg.pth", "infinity-2b", "d32"),
        ("infinity_8b_weights", "infinity-8b", "d56-patchify"),
        ("infinity_125M_256x256.pth", "infinity-125m", "d16"),
    ],
)
def test_a_published_directory_needs_no_description(tmp_path, file, size, tokenizer):
    if file.endswith("weights"):
        (tmp_path / file).mkdir()
        (tmp_path / file / "model.safetensors.index.json").write_text("{}")
    else:
        (tmp_path / file).touch()
    (tmp_path / "infinity_vae_x.pth").touch()
    (tmp_path / "flan-t5-xl").mkdir()
    (tmp_path / "flan-t5-xl" / "config.json").write_text("{}")
    model = find(tmp_path, pixels="1M", ratio=1.5)
    assert (model.transformer_config, model.tokenizer_config) == (TRANSFORMERS[size], TOKENIZERS[tokenizer])
    assert model.schedule == published_schedule("1M", 1.5)
    assert model.image_size == (1248, 832)
    assert (model.text_encoder_name, model.text_encoder_dtype) == (str(tmp_path / "flan-t5-xl"), torch.float16)
    assert find(tmp_path, text_encoder="google/flan-t5-xl").text_encoder_name == "google/flan-t5-xl"
    assert shapes_of(TiSystemConfig(model=size, pixels="1M"))[0] == model.transformer_config


def test_what_is_missing_or_not_unique_is_said(directories, tmp_path):
    def refused(directory, **keys):
        with pytest.raises(ConfigError) as raised:
            find(directory, **keys)
        return f"{raised.value.what} {raised.value.do}"

    assert "no such directory" in refused(tmp_path / "none")
    assert "nothing for the image tokenizer" in refused(tmp_path)
    assert "there is no other.pth" in refused(directories["pth"], transformer="other.pth")
    for name in ("infinity_vae_d32.pth", "infinity_2b_a.pth", "infinity_2b_b.pth"):
        (tmp_path / name).touch()
    assert "several files for the transformer: infinity_2b_a.pth" in refused(tmp_path)
    chosen = {"transformer": "infinity_2b_b.pth"}
    assert "no folders for the text encoder" in refused(tmp_path, **chosen)
    (tmp_path / "infinity_tiny.pth").touch()
    assert "does not say the transformer's size" in refused(tmp_path, transformer="infinity_tiny.pth")
    assert "'7b' is not known" in refused(tmp_path, size="7b", **chosen)
    (tmp_path / "config.json").write_text('{"transformer": {"depth": 2}, "grids": [[1, 1]]}')
    assert "the sizes cannot be read" in refused(tmp_path, **chosen)


def test_weights_of_another_size_are_refused(directories, tmp_path):
    directory = write_model(tmp_path / "other", layout="pth")
    text = (directory / "config.json").read_text()
    (directory / "config.json").write_text(text.replace('"depth": 2', '"depth": 3'))
    with pytest.raises(CheckpointError, match="lacks"):
        find(directory).load_transformer()
