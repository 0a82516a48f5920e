import pytest
import safetensors.torch
import torch
from torch import nn

from frostline.errors import CheckpointError, ConfigError
from frostline.systems.ti.concept import Concept
from frostline.systems.ti.files import save_concepts
from frostline.systems.ti.interchange import export_concept, import_concept

WIDTH = 2048
ROWS = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0))
PADDED = torch.cat([ROWS.repeat(5, 1), torch.zeros(492, WIDTH)])


def read(path, space="t5-input", **settings):
    return import_concept(path, **{"carrier": "dog", "width": WIDTH, "space": space, "name": "<s>", **settings})


def stored(path, content):
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("file", "content", "space", "num"),
    [
        ("diffusers.safetensors", {"<s>": ROWS}, "t5-input", 4),
        ("diffusers.bin", {"<s>": ROWS[0]}, "t5-input", 1),
        ("flux.safetensors", {"clip_l": torch.ones(4, 768), "t5": ROWS}, "t5-input", 4),
        ("comfy.safetensors", {"clip_l": torch.ones(4, 768), "t5xxl": ROWS}, "t5-input", 4),
        ("a1111.pt", {"string_to_param": {"*": ROWS}, "name": "s", "step": 9}, "t5-input", 4),
        ("arbooth.pth", {"args": {"tlen": 512}, "model": {"special_token": ROWS, "pos_start": ROWS}}, "t5-output", 4),
        ("arbooth-token.pt", {"special_token": nn.Parameter(ROWS)}, "t5-output", 4),
        ("editinfinity.pth", nn.Parameter(PADDED[None]), "t5-output", 20),
    ],
)  # fmt: skip
def test_vectors_of_the_same_space_are_read(tmp_path, file, content, space, num):
    concept = read(stored(tmp_path / file, content), space)
    assert (concept.name, concept.carrier, concept.space, concept.num_vectors) == ("<s>", "dog", space, num)
    assert torch.equal(concept.vectors.detach(), ROWS.repeat(5, 1)[:num])
    other = "t5-output" if space == "t5-input" else "t5-input"
    with pytest.raises(CheckpointError, match=r"the vectors live (before|behind) T5.* shall live (behind|before)"):
        read(tmp_path / file, other)
    with pytest.raises(CheckpointError, match="2048 wide, the text encoder's are 4096"):
        read(tmp_path / file, space, width=4096)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("sd1.safetensors", {"<s>": torch.ones(1, 768)}, r"768 wide and the file names no encoder: that is CLIP-L"),
        ("sd2.pt", {"string_to_param": {"*": torch.ones(1, 1024)}}, "OpenCLIP-H"),
        ("sd1.safetensors", {"emb_params": torch.ones(2, 768)}, "CLIP-L"),
        ("sdxl.safetensors", {"clip_l": torch.ones(1, 768), "clip_g": torch.ones(1, 1280)}, "embeddings of CLIP"),
        ("many.safetensors", {"a": torch.ones(1, 8), "b": torch.ones(1, 8)}, "holds 2 tensors: a, b"),
        ("list.pt", [1, 2], "holds a list"),
        ("empty.pt", {}, "holds 0 tensors"),
        ("a1111.pt", {"string_to_param": {}}, "found NoneType"),
        ("shape.pt", {"<s>": torch.ones(1, 2, 3)}, r"expected vectors \(k, width\), found \(1, 2, 3\)"),
        ("ints.pt", {"<s>": torch.ones(1, 3, dtype=torch.long)}, "expected vectors"),
    ],
)
def test_other_spaces_are_refused_with_the_reason(tmp_path, file, content, words):
    with pytest.raises(CheckpointError, match=words) as error:
        read(stored(tmp_path / file, content))
    assert file in str(error.value)


class Evil:
    def __reduce__(self):
        return (print, ("run",))


def test_a_pickle_runs_no_code(tmp_path, capsys):
    path = stored(tmp_path / "evil.pt", {"string_to_param": {"*": Evil()}})
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        read(path)
    assert "run" not in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="cannot be read"):
        read(tmp_path / "nothing.pt")
    (tmp_path / "text.pt").write_text("no file of torch")
    with pytest.raises(CheckpointError, match=r"damaged"):
        read(tmp_path / "text.pt")


def test_a_name_comes_from_the_file_or_the_caller(tmp_path):
    named = stored(tmp_path / "a.safetensors", {"<cat-toy>": ROWS})
    assert read(named, name="").name == "<cat-toy>"
    assert read(named).name == "<s>"
    with pytest.raises(ConfigError, match="calls its concept 'toy'"):
        read(stored(tmp_path / "b.safetensors", {"toy": ROWS}), name="")


def test_one_of_ours_goes_another_way(tmp_path):
    path = tmp_path / "concept.safetensors"
    save_concepts(path, [Concept("<s>", ROWS, carrier="dog")], base_model="", text_encoder="", step=1)
    with pytest.raises(CheckpointError, match="load_concepts"):
        read(path)


def test_a_concept_before_t5_goes_out_and_comes_back(tmp_path):
    concept = Concept("<s>", ROWS, carrier="dog", space="t5-input")
    for form, key in (("diffusers", "<s>"), ("comfyui", "t5xl")):
        path = tmp_path / f"{form}.safetensors"
        export_concept(path, concept, form=form)
        assert list(safetensors.torch.load_file(path)) == [key]
        assert torch.equal(read(path).vectors, concept.vectors)


def test_a_concept_behind_t5_goes_nowhere(tmp_path):
    with pytest.raises(ConfigError, match="no other program puts vectors there"):
        export_concept(tmp_path / "a.safetensors", Concept("<s>", ROWS, carrier="dog"), form="diffusers")
    narrow = Concept("<s>", ROWS[:, :128], carrier="dog", space="t5-input")
    with pytest.raises(ConfigError, match="no T5 of ComfyUI is 128 wide"):
        export_concept(tmp_path / "a.safetensors", narrow, form="comfyui")
    export_concept(tmp_path / "a.safetensors", narrow, form="comfyui", key="t5nano")
    assert list(safetensors.torch.load_file(tmp_path / "a.safetensors")) == ["t5nano"]
